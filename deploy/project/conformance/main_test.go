// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../../.."

// allPass is what a run gives in which every named test passes.
func allPass(sections []Section) Outcomes {
	o := Outcomes{}
	for _, s := range sections {
		for _, r := range s.Rows {
			for _, name := range r.Tests {
				o[name] = true
			}
		}
	}
	return o
}

// The page that is checked in is what the table gives when all tests pass: a
// change of the table, or a renamed test, calls for make conformance.
func TestPage(t *testing.T) {
	sections, err := load(filepath.Join(root, tablePath))
	if err != nil {
		t.Fatal(err)
	}
	if err := exist(root, sections); err != nil {
		t.Error(err)
	}
	for _, fault := range judge(sections, allPass(sections)) {
		t.Error(fault)
	}
	got, err := os.ReadFile(filepath.Join(root, pagePath))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, page(sections, allPass(sections))) {
		t.Errorf("%s is not what %s gives when all tests pass; run make conformance and commit what it writes", pagePath, tablePath)
	}
}

const row = `- title: one
  rows:
  - {id: A, level: MUST, requires: r, weir: w, tests: [%s]}
`

func table(t *testing.T, text string) ([]Section, error) {
	path := filepath.Join(t.TempDir(), "table.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return load(path)
}

// What is wrong with a table is found and said.
func TestFaults(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"an unknown key", strings.Replace(row, "weir:", "wier:", 1), "wier"},
		{"an unknown level", strings.Replace(row, "MUST", "MIGHT", 1), `level "MIGHT"`},
		{"no level", strings.Replace(row, "level: MUST, ", "", 1), `level ""`},
		{"nothing said", strings.Replace(row, "weir: w, ", "", 1), "say what weir does"},
		{"no id", strings.Replace(row, "id: A, ", "", 1), "no title, id or requires"},
		{"a reading without a day", strings.Replace(row, "weir: w,", "weir: w, read: yes,", 1), "expected the day of the reading"},
		{"an id twice", row + "  - {id: A, level: MAY, requires: r, weir: w}\n", "twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := table(t, strings.Replace(c.text, "%s", "", 1)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	for _, c := range []struct{ name, tests, want string }{
		{"no dot", "TestPage", "expected FOLDER.TestName"},
		{"no test", "deploy/project/conformance.Page", "expected FOLDER.TestName"},
		{"no folder", "deploy/none.TestPage", "deploy/none: no tests"},
		{"a misspelt function", "deploy/project/conformance.TestPaeg", "has no TestPaeg"},
		{"a misspelt subtest", "deploy/project/conformance.TestFaults/no_" + "dots", "nothing in deploy/project/conformance gives a subtest the name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sections, err := table(t, fmt.Sprintf(row, c.tests))
			if err != nil {
				t.Fatal(err)
			}
			if err := exist(root, sections); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	sections, err := table(t, fmt.Sprintf(row, "deploy/project/conformance.TestFaults/no_dot"))
	if err != nil {
		t.Fatal(err)
	}
	if err := exist(root, sections); err != nil {
		t.Errorf("a subtest that there is: %v", err)
	}
}

// A test that fails, was skipped or did not run, and a row without a test and a reason: each is a
// fault, and the page says so.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name, text string
		outcomes   Outcomes
		fault      string
		result     string
	}{
		{"pass", fmt.Sprintf(row, "p.TestA"), Outcomes{"p.TestA": true}, "", "| pass |  |"},
		{"read again", strings.Replace(fmt.Sprintf(row, "p.TestA"), "weir: w,", "weir: w, read: 2026-11-30,", 1), Outcomes{"p.TestA": true}, "", "| pass | 2026-11-30 |"},
		{"readings are counted", strings.Replace(fmt.Sprintf(row, "p.TestA"), "weir: w,", "weir: w, read: 2026-11-30,", 1), Outcomes{"p.TestA": true}, "", "1 pass; 1 rows were read again"},
		{"fail", fmt.Sprintf(row, "p.TestA, p.TestB"), Outcomes{"p.TestA": true, "p.TestB": false}, "p.TestB does not pass", "**FAIL**"},
		{"not run", fmt.Sprintf(row, "p.TestA/x"), Outcomes{"p.TestA": true}, "no test p.TestA/x", "**FAIL**"},
		{"not shown", fmt.Sprintf(row, ""), nil, "no test shows it", "**not shown**"},
		{"deviation", strings.Replace(row, "tests: [%s]", "deviation: because", 1), nil, "", "Deviation: because |  | deviation |"},
		{"a deviation whose test fails", strings.Replace(row, "tests: [%s]", "deviation: because, tests: [p.TestA]", 1),
			Outcomes{"p.TestA": false}, "does not pass", "**FAIL**"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sections, err := table(t, c.text)
			if err != nil {
				t.Fatal(err)
			}
			faults := judge(sections, c.outcomes)
			if (c.fault == "") != (len(faults) == 0) || c.fault != "" && !strings.Contains(fmt.Sprint(faults), c.fault) {
				t.Errorf("%v, want %q", faults, c.fault)
			}
			if got := string(page(sections, c.outcomes)); !strings.Contains(got, c.result) {
				t.Errorf("%s\nwant %q", got, c.result)
			}
		})
	}
}

// runFolder tells what passed, what failed and what was skipped, subtests too.
func TestRunFolder(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module m\n\ngo 1.26\n",
		"p/p_test.go": `package p

import "testing"

func TestA(t *testing.T) { t.Run("good one", func(t *testing.T) {}); t.Run("bad", func(t *testing.T) { t.Fail() }) }
func TestB(t *testing.T) { t.Skip() }
func TestC(t *testing.T) {}
func TestOther(t *testing.T) {}
`} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o := Outcomes{}
	var shown strings.Builder
	if err := runFolder(dir, "p", []string{"TestA", "TestB", "TestC"}, o, &shown); err != nil {
		t.Fatal(err)
	}
	if text := shown.String(); !strings.Contains(text, "--- FAIL: TestA/bad") || !strings.Contains(text, "--- SKIP: TestB") {
		t.Errorf("%q is shown, want what failed and was skipped", text)
	}
	want := Outcomes{"p.TestA": false, "p.TestA/good_one": true, "p.TestA/bad": false, "p.TestB": false, "p.TestC": true}
	if fmt.Sprint(o) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", o, want)
	}
}
