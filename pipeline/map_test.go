// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"go/ast"
	"maps"
	"slices"
	"strings"
	"testing"
)

// mapped parses the map in the package's comment: the names of the stages, and of the other files.
func mapped(t *testing.T, files map[string]*ast.File) (stages, others []string) {
	t.Helper()
	list := &stages
	for line := range strings.Lines(files["pipeline.go"].Doc.Text()) {
		switch fields := strings.Fields(line); {
		case strings.HasPrefix(line, "\t") && len(fields) > 1:
			*list = append(*list, fields[0])
		case strings.HasPrefix(line, "The other files"):
			list = &others
		}
	}
	return stages, others
}

// stagePlace returns the file and the method of a stage: select is a word of the language, and
// flush is the end of finish.
func stagePlace(stage string) (file, method string) {
	switch stage {
	case "select":
		return "select.go", "selectSource"
	case "flush":
		return "pipeline.go", "flush"
	}
	return stage + ".go", stage
}

// The map at the top of pipeline.go is true: each stage is a method in the file of its name, each
// file is in the map, and the stages are called in the map's order.
func TestMap(t *testing.T) {
	files := sources(t)
	stages, others := mapped(t, files)
	if len(stages) < 10 || len(others) < 10 {
		t.Fatalf("the map has stages %q and other files %q", stages, others)
	}
	unmapped := maps.Clone(files)
	methods := map[string]*ast.FuncDecl{}
	place := map[string]string{}
	functions(t, func(file string, d *ast.FuncDecl) {
		if d.Recv != nil {
			if star, ok := d.Recv.List[0].Type.(*ast.StarExpr); ok {
				if x, ok := star.X.(*ast.Ident); ok && x.Name == "Worker" {
					methods[d.Name.Name], place[d.Name.Name] = d, file
				}
			}
		}
	})
	order := map[string]int{} // of the methods that are stages
	for i, stage := range stages {
		file, method := stagePlace(stage)
		if place[method] != file {
			t.Errorf("stage %s: method %s is in %q, expected %q", stage, method, place[method], file)
		}
		if file != "pipeline.go" {
			delete(unmapped, file)
		}
		order[method] = i + 1
	}
	for _, name := range others {
		if unmapped[name+".go"] == nil {
			t.Errorf("the map names %s twice, or there is no such file", name)
		}
		delete(unmapped, name+".go")
	}
	for name := range unmapped {
		t.Errorf("%s is not in the map at the top of pipeline.go", name)
	}

	// In each function that calls stages, they come in the order of the map.
	called := map[string]bool{}
	for _, caller := range []string{"intake", "longWay", "routeOne", "finish"} {
		last := 0
		for _, name := range calls(methods[caller]) {
			i := order[name]
			if i == 0 {
				continue
			}
			called[name] = true
			if i < last {
				t.Errorf("%s calls %s after %s, and the map has them the other way round", caller, name, stages[last-1])
			}
			last = i
		}
	}
	for _, name := range calls(methods["forward"]) { // between two runs of the long way
		called[name] = true
	}
	for method := range order {
		if !called[method] {
			t.Errorf("the map has %s, which none of the functions that call stages calls", method)
		}
	}
	// A burst comes first through what takes it in, and then the rest.
	if got := calls(methods["Process"]); slices.Index(got, "intake") < 0 || slices.Index(got, "finish") < slices.Index(got, "intake") {
		t.Errorf("Process calls %q, expected intake and finish", got)
	}
	if i, l := order["short"], order["apply"]; i > l || i < order["reassemble"] {
		t.Error("the short way is tried between reassembling and the long way")
	}
}

// calls returns the names of the methods of the worker that a function calls, in their order.
func calls(d *ast.FuncDecl) (names []string) {
	ast.Inspect(d, func(n ast.Node) bool {
		if c, ok := n.(*ast.CallExpr); ok {
			if s, ok := c.Fun.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "w" {
					names = append(names, s.Sel.Name)
				}
			}
		}
		return true
	})
	return names
}
