// Holds the manifests of a chart that are custom resources against their projects' own definitions, as an API server would: every field
// known and of its type, what is required there, and the rules in CEL. Built-in kinds are another tool's. Reads YAML documents, which may
// hold no key twice, and prints them all as one JSON array, for whoever looks further.
// Usage: chart-check DIRECTORY-OF-DEFINITIONS <MANIFESTS. Exit code 1 with the reasons where one does not hold.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

// One version of a kind, as its project defines it.
type definition struct {
	structural *schema.Structural
	validator  validation.SchemaValidator
}

// The definitions in the files of a directory, by apiVersion and kind.
func definitions(folder string) (map[string]definition, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("%s: no definitions: %v", folder, err)
	}
	found := map[string]definition{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var resource apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(text, &resource); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, version := range resource.Spec.Versions {
			var internal apiextensions.CustomResourceValidation
			if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(version.Schema, &internal, nil); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			structural, err := schema.NewStructural(internal.OpenAPIV3Schema)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			validator, _, err := validation.NewSchemaValidator(internal.OpenAPIV3Schema)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			name := resource.Spec.Group + "/" + version.Name + " " + resource.Spec.Names.Kind
			found[name] = definition{structural, validator}
		}
	}
	return found, nil
}

func (d definition) faults(document map[string]any) []error {
	var faults []error
	defaulting.Default(document, d.structural)
	for _, fault := range validation.ValidateCustomResource(nil, document, d.validator) {
		faults = append(faults, fault)
	}
	rules := cel.NewValidator(d.structural, true, celconfig.PerCallLimit)
	broken, _ := rules.Validate(context.Background(), nil, d.structural, document, nil, celconfig.RuntimeCELCostBudget)
	for _, fault := range broken {
		faults = append(faults, fault)
	}
	// Last, since it takes away what it does not know.
	options := schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	for _, path := range pruning.PruneWithOptions(document, d.structural, true, options) {
		faults = append(faults, fmt.Errorf("%s: not known", path))
	}
	return faults
}

func run(folder string, input io.Reader) ([]map[string]any, error) {
	known, err := definitions(folder)
	if err != nil {
		return nil, err
	}
	var documents []map[string]any
	var faults []error
	reader := utilyaml.NewYAMLReader(bufio.NewReader(input))
	for {
		text, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return documents, errors.Join(faults...)
		}
		if err != nil {
			return nil, err
		}
		raw, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
			continue
		}
		var document, copied map[string]any
		if err := errors.Join(utiljson.Unmarshal(raw, &document), utiljson.Unmarshal(raw, &copied)); err != nil {
			return nil, err
		}
		documents = append(documents, document)
		version, _ := document["apiVersion"].(string)
		kind, _ := document["kind"].(string)
		if definition, is := known[version+" "+kind]; is {
			for _, fault := range definition.faults(copied) {
				faults = append(faults, fmt.Errorf("%s: %w", kind, fault))
			}
		} else if group, _, _ := strings.Cut(version, "/"); strings.Contains(group, ".") && !strings.HasSuffix(group, ".k8s.io") || strings.HasPrefix(group, "gateway.") {
			faults = append(faults, fmt.Errorf("%s %s: no definition of it", version, kind))
		}
	}
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: chart-check DIRECTORY-OF-DEFINITIONS <MANIFESTS")
		os.Exit(2)
	}
	documents, err := run(os.Args[1], os.Stdin)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(documents)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
