// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// The timed copies call what their models call, in the same order, and every stage that has a name is timed.
func TestProcessTimedIsProcess(t *testing.T) {
	ended := 0
	calls := func(file, name string) (stages []string) {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Name.Name != name {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				switch receiver, _ := sel.X.(*ast.Ident); {
				case receiver != nil && receiver.Name == "w":
					stages = append(stages, strings.TrimSuffix(sel.Sel.Name, "Timed"))
				case receiver != nil && receiver.Name == "c" && sel.Sel.Name == "end":
					ended++
				}
				return true
			})
		}
		return stages
	}
	for _, name := range []string{"Process", "forward"} {
		want := calls("pipeline.go", name)
		got := calls("timed.go", name+"Timed")
		if len(want) == 0 || !slices.Equal(got, want) {
			t.Errorf("%sTimed calls %v, %s %v", name, got, name, want)
		}
	}
	if ended != len(Stages) {
		t.Errorf("%d stages are timed, %d have names", ended, len(Stages))
	}
}
