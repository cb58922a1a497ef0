//go:build tools

// Keeps helm, and all that it is built of, in go.mod and go.sum: `scripts/setup test` builds its command from there.
package tools

import _ "helm.sh/helm/v3/cmd/helm"
