// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// architecture is the page that lists the files of six ways, each in order.
const architecture = "../docs/architecture.md"

// listedWay is a row of that list.
type listedWay struct {
	name  string
	steps []listedStep
}

// listedStep is a file, from the repository's root, and the functions in it that the list names.
type listedStep struct {
	file      string
	functions []string
}

var stepPattern = regexp.MustCompile("`([\\w/-]+\\.go)`(?: \\(([A-Za-z, ]+)\\))?")

// remark matches what is in parentheses after a file and is words, not names of functions.
var remark = regexp.MustCompile("[a-z] [a-z]")

// listedWays reads the list.
func listedWays(t *testing.T) (ways []listedWay) {
	t.Helper()
	page, err := os.ReadFile(architecture)
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(page), "\n| way | files, in order |\n|---|---|\n")
	if !found {
		t.Fatalf("%s has no table of ways", architecture)
	}
	for row := range strings.Lines(list) {
		cells := strings.Split(row, "|")
		if len(cells) != 4 {
			break
		}
		w := listedWay{name: strings.TrimSpace(cells[1])}
		for _, m := range stepPattern.FindAllStringSubmatch(cells[2], -1) {
			s := listedStep{file: m[1]}
			if !strings.HasPrefix(s.file, "appliance/") && !strings.HasPrefix(s.file, "config/") {
				s.file = "pipeline/" + s.file
			}
			if m[2] != "" && !remark.MatchString(m[2]) {
				s.functions = strings.Split(m[2], ", ")
			}
			w.steps = append(w.steps, s)
		}
		ways = append(ways, w)
	}
	return ways
}

// functionsOf returns the names of the functions and methods of a file.
func functionsOf(t *testing.T, path string) (names []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok {
			names = append(names, fn.Name.Name)
		}
	}
	return names
}

// The files that docs/architecture.md lists for six ways are there, with the functions that it
// names, and an established packet meets at most eight files.
func TestListedWays(t *testing.T) {
	ways := listedWays(t)
	var names []string
	for _, w := range ways {
		names = append(names, w.name)
		different := map[string]bool{}
		for _, s := range w.steps {
			different[s.file] = true
			declared := functionsOf(t, "../"+s.file)
			for _, f := range s.functions {
				if !slices.Contains(declared, f) {
					t.Errorf("%s: the list names %s in %s, which has no such function", w.name, f, s.file)
				}
			}
		}
		if w.name == "established packet" && len(different) > 8 {
			t.Errorf("an established packet meets %d files; expected at most 8", len(different))
		}
		if len(w.steps) < 5 {
			t.Errorf("%s: the list has %d files", w.name, len(w.steps))
		}
	}
	want := []string{"established packet", "first SNAT packet", "inbound ICMP error", "fragment", "hairpin", "reload"}
	if !slices.Equal(names, want) {
		t.Errorf("the list has the ways %q, expected %q", names, want)
	}
}
