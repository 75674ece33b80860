// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// named returns the top-level tests that the rows name, by folder.
func named(sections []Section) (map[string][]string, error) {
	folders := map[string][]string{}
	var faults []error
	for _, s := range sections {
		for _, r := range s.Rows {
			for _, name := range r.Tests {
				folder, test, ok := strings.Cut(name, ".")
				top, _, _ := strings.Cut(test, "/")
				if !ok || !strings.HasPrefix(top, "Test") {
					faults = append(faults, fmt.Errorf("%s, %s: %q; expected FOLDER.TestName or FOLDER.TestName/subtest", s.Title, r.ID, name))
					continue
				}
				if !slices.Contains(folders[folder], top) {
					folders[folder] = append(folders[folder], top)
				}
			}
		}
	}
	for _, tests := range folders {
		slices.Sort(tests)
	}
	return folders, errors.Join(faults...)
}

// runTests runs every test that a row names, a folder at a time, and shows what fails.
func runTests(root string, sections []Section) (Outcomes, error) {
	folders, err := named(sections)
	if err != nil {
		return nil, err
	}
	outcomes := Outcomes{}
	for _, folder := range sorted(folders) {
		fmt.Printf("conformance: %d tests of %s\n", len(folders[folder]), folder)
		if err := runFolder(root, folder, folders[folder], outcomes, os.Stderr); err != nil {
			return nil, err
		}
	}
	return outcomes, nil
}

// runFolder runs the tests of one folder, and shows what fails. That some fail is an outcome and no
// error.
func runFolder(root, folder string, tests []string, outcomes Outcomes, show io.Writer) error {
	cmd := exec.Command("go", "test", "-json", "-count=1", "-timeout=15m", "-run", "^("+strings.Join(tests, "|")+")$", "./"+folder)
	cmd.Dir, cmd.Stderr = root, show
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	said := map[string][]string{} // by test, to be shown if it fails
	lines := bufio.NewScanner(pipe)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e struct{ Action, Test, Output string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("%s: go test -json says %q: %w", folder, lines.Text(), err)
		}
		switch e.Action {
		case "output":
			said[e.Test] = append(said[e.Test], e.Output)
		case "build-output":
			fmt.Fprint(show, e.Output)
		case "pass", "fail", "skip":
			if e.Action != "pass" {
				fmt.Fprint(show, strings.Join(said[e.Test], ""))
			}
			delete(said, e.Test)
			if e.Test != "" {
				outcomes[folder+"."+e.Test] = e.Action == "pass"
			}
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: go test: %w", folder, err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("%s: go test: %w", folder, err)
	}
	return nil
}

// exist looks for the named tests in the sources, which takes no time: the functions, and for each
// part of a subtest's name either a string in the folder's tests that gives it, or a folder or
// document of testdata. Names that are made at run time, of numbers for example, are for the run to
// find.
func exist(root string, sections []Section) error {
	folders, err := named(sections)
	if err != nil {
		return err
	}
	var faults []error
	for _, folder := range sorted(folders) {
		functions, names, err := testNames(filepath.Join(root, folder))
		if err != nil {
			return err
		}
		for _, s := range sections {
			for _, r := range s.Rows {
				for _, name := range r.Tests {
					test, ok := strings.CutPrefix(name, folder+".")
					if !ok {
						continue
					}
					parts := strings.Split(test, "/")
					if !functions[parts[0]] {
						faults = append(faults, fmt.Errorf("%s, %s: %s has no %s", s.Title, r.ID, folder, parts[0]))
					}
					for _, part := range parts[1:] {
						if !names[part] {
							faults = append(faults, fmt.Errorf("%s, %s: nothing in %s gives a subtest the name %s", s.Title, r.ID, folder, part))
						}
					}
				}
			}
		}
	}
	return errors.Join(faults...)
}

// documentName is the line before a document in a text of many.
var documentName = regexp.MustCompile(`(?m)^-- ([^ /]+)(?:/\S+)? --$`)

// testNames returns the test functions of a folder, and what may be names of subtests.
func testNames(dir string) (functions, names map[string]bool, err error) {
	functions, names = map[string]bool{}, map[string]bool{}
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		return nil, nil, fmt.Errorf("%s: no tests (%v)", dir, err)
	}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, nil, err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				functions[n.Name.Name] = true
			case *ast.BasicLit:
				if text, err := strconv.Unquote(n.Value); n.Kind == token.STRING && err == nil {
					for part := range strings.SplitSeq(text, "/") {
						names[strings.ReplaceAll(part, " ", "_")] = true // as testing does
					}
				}
			}
			return true
		})
	}
	cases, err := filepath.Glob(filepath.Join(dir, "testdata", "*", "*"))
	for _, path := range cases {
		names[filepath.Base(path)] = true
	}
	texts, _ := filepath.Glob(filepath.Join(dir, "testdata", "*.txt"))
	for _, path := range texts {
		names[strings.TrimSuffix(filepath.Base(path), ".txt")] = true
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, err
		}
		for _, m := range documentName.FindAllSubmatch(text, -1) {
			names[string(m[1])] = true
		}
	}
	return functions, names, err
}

func sorted(m map[string][]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
