// Holds a Grafana dashboard against Grafana's own schema, as its Foundation SDK has it: every field known and of its type, the
// options of each panel and each query included. The schema lets a dashboard have no uid or title and two panels one id; this does
// not, and wants a description on each panel and a known type of panel and query. Whether a word is one of an enumeration the SDK
// does not check.
// Usage: dashboard-check FILE. Exit code 1 with the reasons where it does not hold.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// The SDK returns an empty list of errors, which is not nil, where all is well.
func realError(err error) error {
	var faults cog.BuildErrors
	if errors.As(err, &faults) && len(faults) == 0 {
		return nil
	}
	return err
}

func check(raw []byte) error {
	plugins.RegisterDefaultPlugins()
	if err := realError(new(dashboard.Dashboard).UnmarshalJSONStrict(raw)); err != nil {
		return err
	}
	// For the same reason the strict reading drops what it found to be right.
	var board dashboard.Dashboard
	if err := json.Unmarshal(raw, &board); err != nil {
		return err
	}
	if err := realError(board.Validate()); err != nil {
		return err
	}
	var faults []error
	if err := checkFields("", raw); err != nil {
		faults = append(faults, err)
	}
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf(format, args...))
	}
	if board.Uid == nil || *board.Uid == "" {
		fault("uid: missing")
	}
	if board.Title == nil || *board.Title == "" {
		fault("title: missing")
	}
	ids := map[uint32]bool{}
	number := func(place string, id *uint32) {
		switch {
		case id == nil:
			fault("%s.id: missing", place)
		case ids[*id]:
			fault("%s.id: %d stands twice", place, *id)
		default:
			ids[*id] = true
		}
	}
	for at, item := range board.Panels {
		place := fmt.Sprintf("panels[%d]", at)
		if row := item.RowPanel; row != nil {
			number(place, &row.Id)
			for within, panel := range row.Panels {
				place := fmt.Sprintf("%s.panels[%d]", place, within)
				number(place, panel.Id)
				checkPanel(place, panel, fault)
			}
		}
		if panel := item.Panel; panel != nil {
			number(place, panel.Id)
			checkPanel(place, *panel, fault)
		}
	}
	return errors.Join(faults...)
}

// What the SDK reads leniently: the fieldConfig of a panel, but for the part of the panel's type, and queries of a data source that it
// does not know.
func checkFields(place string, raw []byte) error {
	var holder struct {
		Panels []json.RawMessage
	}
	if err := json.Unmarshal(raw, &holder); err != nil {
		return err
	}
	var faults []error
	for at, raw := range holder.Panels {
		place := fmt.Sprintf("%spanels[%d].", place, at)
		var panel struct {
			FieldConfig json.RawMessage
			Targets     []json.RawMessage
		}
		if err := json.Unmarshal(raw, &panel); err != nil {
			return err
		}
		for at, raw := range panel.Targets {
			query, err := cog.StrictUnmarshalDataquery(raw, "")
			if _, unknown := query.(variants.UnknownDataquery); unknown || realError(err) != nil {
				faults = append(faults, fmt.Errorf("%stargets[%d]: not a query of a data source that is known", place, at))
			}
		}
		var fields dashboard.FieldConfigSource
		if err := realError(fields.UnmarshalJSONStrict(panel.FieldConfig)); err != nil {
			faults = append(faults, cog.MakeBuildErrors(place+"fieldConfig", err))
		}
		if err := checkFields(place, raw); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

func checkPanel(place string, panel dashboard.Panel, fault func(string, ...any)) {
	if panel.Description == nil || *panel.Description == "" {
		fault("%s.description: missing", place)
	}
	// The SDK takes the options of a type that it does not know as they are.
	if _, known := cog.ConfigForPanelcfgVariant(panel.Type); !known {
		fault("%s.type: %q is not known", place, panel.Type)
	}
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: dashboard-check FILE")
		os.Exit(2)
	}
	raw, err := os.ReadFile(os.Args[1])
	if err == nil {
		err = check(raw)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
