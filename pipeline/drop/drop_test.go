// SPDX-License-Identifier: Apache-2.0

package drop

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/drops.md")

const page = "../../docs/drops.md"

// docs/drops.md is what the table says.
func TestPage(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Drop reasons\n" +
		"\n" +
		"Every packet that ends without being sent has a reason, counted in `weir_dropped_packets_total{reason}`. This page is made\n" +
		"from the table in [pipeline/drop](../pipeline/drop/drop.go): `go test ./pipeline/drop -update`.\n" +
		"\n" +
		"\"Answered\" is the ICMP error that the sender inside gets, rate-limited, as type/code; \"also outside\": a sender outside gets it too.\n" +
		"\n" +
		"| reason | class | stage | what it is | answered | check or do |\n" +
		"|---|---|---|---|---|---|\n")
	for r := Pass + 1; r < NumReasons; r++ {
		e := &reasons[r]
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", e.name, e.class, e.where, e.help, e.answer, e.check)
	}
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Errorf("%s does not say what the table says; run: go test ./pipeline/drop -update", page)
	}
}

// Each reason is explained, under a name that no other one has.
func TestReasonsAreExplained(t *testing.T) {
	names := map[string]bool{}
	name := regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	for r := Pass + 1; r < NumReasons; r++ {
		e := &reasons[r]
		if !name.MatchString(e.name) || names[e.name] {
			t.Errorf("reason %d: its name %q is empty, odd or another one's too", r, e.name)
		}
		names[e.name] = true
		if e.class == 0 || e.where == "" || e.help == "" || e.check == "" {
			t.Errorf("%s: class, stage, help or what to check is missing", e.name)
		}
	}
}
