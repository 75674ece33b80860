// SPDX-License-Identifier: Apache-2.0

// conformance runs the tests that requirements.yaml names and writes docs/conformance.md from what
// came of them: a row for each requirement, with the tests that show it. A row has tests, or a
// reason why weir does otherwise; what is neither, a test that does not exist, and a test that does
// not pass are faults, and the exit code says so.
//
//	go run ./deploy/project/conformance            in the project's root
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	tablePath = "deploy/project/conformance/requirements.yaml"
	pagePath  = "docs/conformance.md"
)

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(root string) error {
	sections, err := load(filepath.Join(root, tablePath))
	if err != nil {
		return err
	}
	if err := exist(root, sections); err != nil { // a misspelt name is to be found before minutes of tests
		return err
	}
	outcomes, err := runTests(root, sections)
	if err != nil {
		return err
	}
	faults := judge(sections, outcomes)
	text := page(sections, outcomes)
	if err := os.WriteFile(filepath.Join(root, pagePath), text, 0o644); err != nil {
		return err
	}
	fmt.Printf("conformance: %s in %s\n", count(sections, outcomes), pagePath)
	return errors.Join(faults...)
}

// page returns docs/conformance.md. It has nothing in it that differs between two runs with equal
// outcomes.
func page(sections []Section, outcomes Outcomes) []byte {
	var b bytes.Buffer
	b.WriteString(`# Conformance

The requirements for weir, and the tests that show each of them. ` + "`make conformance`" + ` writes this page from
` + "[requirements.yaml](../" + tablePath + ")" + ` and from the results of the tests; do not edit it by hand. Requirements are
in our words; the RFCs' words are binding. Every deviation has a reason. ` + "`pipeline.TestCases/NAME`" + ` is the folder
` + "`pipeline/testdata/cases/NAME`" + `: a configuration, packets in, and all packets that must leave. "Read again" is the day on
which somebody who wrote neither the row nor its tests held both against the RFC's own words.

`)
	fmt.Fprintf(&b, "%s.\n\n", count(sections, outcomes))
	for _, s := range sections {
		fmt.Fprintf(&b, "- [%s](#%s)\n", s.Title, anchor(s.Title))
	}
	for _, s := range sections {
		fmt.Fprintf(&b, "\n## %s\n\n", s.Title)
		if s.Intro != "" {
			fmt.Fprintf(&b, "%s\n\n", s.Intro)
		}
		b.WriteString("| # | level | requires | weir | tests | result | read again |\n|---|---|---|---|---|---|---|\n")
		for _, r := range s.Rows {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", r.ID, r.Level, cell(r.Requires), cell(r.does()), r.testCell(), r.result(outcomes), r.Read)
		}
	}
	return b.Bytes()
}
