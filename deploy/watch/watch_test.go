// SPDX-License-Identifier: Apache-2.0

// Package watch holds what watches weir; these tests hold it against the series that weir exposes.
package watch

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"testing"
)

// name is one of weir's series.
var name = regexp.MustCompile(`\bweir_[a-z_]+`)

// TestMetricNames: an alert on a series that nobody exposes never fires, and a panel of one stays
// empty.
func TestMetricNames(t *testing.T) {
	exposed, err := os.ReadFile("../../metrics/testdata/metrics.txt") // a page, which a test of metrics holds
	if err != nil {
		t.Fatal(err)
	}
	known := name.FindAllString(string(exposed), -1)
	for _, path := range []string{"weir.rules.yml", "weir.rules_test.yml", "dashboard.json"} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		used := name.FindAllString(string(b), -1)
		if len(used) == 0 {
			t.Errorf("%s: uses no metric", path)
		}
		for _, n := range used {
			if !slices.Contains(known, n) {
				t.Errorf("%s: weir exposes no %s", path, n)
			}
		}
	}
}

func TestDashboard(t *testing.T) {
	b, err := os.ReadFile("dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Title  string
		UID    string
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
			GridPos struct{ X, Y, W, H int }
		}
	}
	if err := json.Unmarshal(b, &dashboard); err != nil {
		t.Fatal(err)
	}
	taken := map[[2]int]string{}
	for _, p := range dashboard.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("panel %q asks nothing", p.Title)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q lies over %q or outside the grid", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
	if dashboard.UID == "" || len(taken) == 0 {
		t.Error("the dashboard has no uid or no panels")
	}
}
