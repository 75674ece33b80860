// SPDX-License-Identifier: Apache-2.0

// Package watch holds what watches weir; these tests hold it against the series that weir exposes.
package watch

import (
	"encoding/json"
	"os"
	"regexp"
	"testing"
)

// metricNames are the series that weir exposes.
var metricNames = map[string]bool{
	"weir_received_packets_total": true, "weir_transmitted_packets_total": true,
	"weir_received_bytes_total": true, "weir_transmitted_bytes_total": true,
	"weir_forwarded_packets_total": true, "weir_punted_packets_total": true, "weir_originated_packets_total": true,
	"weir_dropped_packets_total": true, "weir_held_packets": true, "weir_stateless_packets_total": true,
	"weir_sessions": true, "weir_sessions_capacity": true, "weir_snat_ports_in_use": true, "weir_generation": true,
	"weir_config_last_reload_successful": true, "weir_config_last_reload_success_timestamp_seconds": true,
	"weir_worker_polls_total": true, "weir_worker_empty_polls_total": true, "weir_worker_busy_seconds_total": true,
	"weir_dataplane_up": true, "weir_dataplane_restarts_total": true,
}

// TestMetricNames: an alert on a series that nobody exposes never fires, and a panel of one stays
// empty.
func TestMetricNames(t *testing.T) {
	name := regexp.MustCompile(`\bweir_[a-z_]+`)
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
			if !metricNames[n] {
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
