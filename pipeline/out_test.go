// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sources parses the package's files without its tests.
func sources(t *testing.T) map[string]*ast.File {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*ast.File{}
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = f
		}
	}
	return files
}

// functions calls f for each function of the package.
func functions(t *testing.T, f func(file string, d *ast.FuncDecl)) {
	t.Helper()
	for name, file := range sources(t) {
		for _, d := range file.Decls {
			if d, ok := d.(*ast.FuncDecl); ok {
				f(name, d)
			}
		}
	}
}

// written returns the name of the field that an assignment to e changes, or "".
func written(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.IndexExpr:
		return written(e.X)
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// One function ends packets, one queues them, one begins sessions and one ends them: capture, the
// log of drops and the log of sessions rely on it.
func TestOneWayOut(t *testing.T) {
	want := map[string][]string{
		// A packet's end.
		"write dropped":   {"flush", "out"}, // of this turn
		"write punted":    {"flush", "out"}, // likewise
		"write Dropped":   {"flush"},
		"write Punted":    {"flush"},
		"write Handed":    {"out"},
		"write Forwarded": {"Sent"},
		"write Done":      {"Abandon", "out", "refused"}, // refused: extra pieces; Abandon: spare buffers
		// A frame that is sent.
		"write Frames":  {"queue"},
		"write Handles": {"queue"},
		// A session's begin and end.
		"write SessionsCreated": {"create"},
		"write SessionsEnded":   {"end"},
		"sessions.Alloc":        {"create"},
		"sessions.Publish":      {"create"},
		"sessions.Remove":       {"create", "end"}, // create: what has not begun after all
		// Whose a source is, and how a packet leaves under an external address.
		"read Sources": {"sender"},
		"write shared": {"leaveAs", "reverse"}, // reverse: not any more
	}
	got := map[string][]string{}
	functions(t, func(_ string, d *ast.FuncDecl) {
		found := map[string]bool{}
		ast.Inspect(d, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, e := range n.Lhs {
					found["write "+written(e)] = true
				}
			case *ast.IncDecStmt:
				found["write "+written(n.X)] = true
			case *ast.UnaryExpr: // a pointer could be written through elsewhere
				if n.Op == token.AND {
					found["write "+written(n.X)] = true
				}
			case *ast.SelectorExpr:
				found["read "+n.Sel.Name] = true
				if x, ok := n.X.(*ast.SelectorExpr); ok {
					found[x.Sel.Name+"."+n.Sel.Name] = true
				}
			}
			return true
		})
		for what := range found {
			if _, ok := want[what]; ok {
				got[what] = append(got[what], d.Name.Name)
			}
		}
	})
	for what := range got {
		slices.Sort(got[what])
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("expected each of these in the functions that are to do it, and in no others (-want +got):\n%s", d)
	}
}

// Whatever ends is counted once, under its verdict, and its buffer goes back but where somebody has
// it.
func TestVerdictsAreCounted(t *testing.T) {
	for _, c := range []struct {
		verdict                       verdict
		dropped, punted, handed, done int
	}{
		{refuse(1), 1, 0, 0, 1},
		{punted, 0, 1, 0, 1},
		{handed, 0, 0, 1, 0},
		{held, 0, 0, 0, 0},
	} {
		w := newTestWorker(t, benchConfig)
		w.out(&Packet{Handle: 7}, 0, true, c.verdict)
		w.flush()
		sum := w.counters.Totals()
		got := []int{int(sum.Dropped), int(sum.Punted), int(w.counters.Handed), len(w.Done)}
		if want := []int{c.dropped, c.punted, c.handed, c.done}; !slices.Equal(got, want) {
			t.Errorf("verdict %#x: dropped, punted, handed, done %v, expected %v", c.verdict, got, want)
		}
		if c.verdict.dropped() != (c.dropped == 1) {
			t.Errorf("verdict %#x says dropped: %t", c.verdict, c.verdict.dropped())
		}
	}
	if refuse(0) != goesOn || goesOn.dropped() {
		t.Error("no reason refuses a packet")
	}
}
