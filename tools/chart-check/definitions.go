//go:build tools

// Keeps the modules whose definitions of resources are read in go.mod and go.sum: `scripts/setup test` copies the files from there.
package main

import (
	_ "github.com/prometheus-operator/prometheus-operator/pkg/versionutil"
	_ "sigs.k8s.io/gateway-api/apis/v1"
)
