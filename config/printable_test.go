// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                   "",
		"name ü 日本":          "name ü 日本",
		"a\nb\rc\td":         `a\nb\rc\td`,
		"\x1b[31mred\x7f":    `\x1b[31mred\x7f`,
		"\u202egood\u2066":   `\u202egood\u2066`,
		"\u0085\u200b\ufeff": `\u0085\u200b\ufeff`,
		"\xff\ufffd":         `\xff` + "\ufffd",
	} {
		if got := Printable(in); got != want {
			t.Errorf("%q: %q, expected %q", in, got, want)
		}
		if Printable(Printable(in)) != Printable(in) {
			t.Errorf("%q: differs the second time", in)
		}
	}
}

// hostile are names, keys and values that would act on a terminal or pass for another line.
var hostile = []string{"\x1b]0;x\x07\x1b[2J", "\u202egnp.exe\u2066", "x\nweir.yaml: good: 2 ports", "x: good: 2 ports", "\u0085\u2028y", "\x9b31m"}

// Whatever a file and its name say, each fault is one line without anything that a terminal acts
// on, and names and keys are told apart from the words around them.
func TestFaultsArePrintable(t *testing.T) {
	dir := t.TempDir()
	for i, h := range hostile {
		quoted := `"` + strings.NewReplacer("\x1b", `\e`, "\x07", `\a`, "\n", `\n`, "\u0085", `\N`, "\u2028", `\L`, "\x9b", `\x9b`).Replace(h) + `"`
		text := "version: 1\n" + quoted + ": 1\nlog: {" + quoted + ": 1, level: " + quoted + "}\nports:\n- {name: " + quoted + ", device: " + quoted + "}\n- !<tag:" +
			"%1b%5b31m%0agood> x\n- " + quoted + "\nvpcs: [{name: v, routes: [{to: 0.0.0.0/0, gateway: " + quoted + "}]}]\n"
		name := strings.ReplaceAll(h, "/", "_") + ".yaml"
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)+name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/nowhere", filepath.Join(dir, "none"+name)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(err error) {
		t.Helper()
		faults, ok := err.(Faults)
		if !ok || len(faults) < len(hostile) {
			t.Fatalf("%T of %d, expected %d faults at the least", err, len(faults), len(hostile))
		}
		for _, f := range faults {
			s := f.String()
			if Printable(s) != s {
				t.Errorf("a fault that acts on a terminal: %q", s)
			}
			if strings.HasPrefix(s, "x: good") || strings.Contains(strings.ReplaceAll(s, `\"`, ""), " x: good: 2 ports: ") {
				t.Errorf("a name that passes for a message: %s", s)
			}
		}
	}
	_, _, err := Load(dir) // the links lead nowhere
	expect(err)
	links, _ := filepath.Glob(filepath.Join(dir, "none*"))
	for _, l := range links {
		os.Remove(l)
	}
	_, _, err = Load(dir)
	expect(err)
}
