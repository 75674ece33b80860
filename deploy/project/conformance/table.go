// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Section is one RFC, or one part of the catalogue of attacks.
type Section struct {
	Title string `yaml:"title"`
	Intro string `yaml:"intro"`
	Rows  []Row  `yaml:"rows"`
}

// Row is one requirement.
type Row struct {
	ID        string   `yaml:"id"`
	Level     string   `yaml:"level"`     // the RFC's word
	Requires  string   `yaml:"requires"`  // in a few words
	Weir      string   `yaml:"weir"`      // what weir does
	Deviation string   `yaml:"deviation"` // why it does otherwise
	Tests     []string `yaml:"tests"`     // FOLDER.TestName/subtest, as go test -v names it
	Read      string   `yaml:"read"`      // the day on which somebody else read it again; empty: nobody did
}

// levels are what Level may be; "attack" and "fault" rows are no RFC's.
var levels = []string{"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "RECOMMENDED", "MAY", "info", "attack", "fault"}

// must says whether a row without a passing test is a fault whatever else it says.
func (r *Row) must() bool { return strings.HasPrefix(r.Level, "MUST") }

// Outcomes are the tests that ran, by FOLDER.TestName/subtest, and whether each passed. A skipped
// one did not.
type Outcomes map[string]bool

// load reads the table and checks what can be known of it without a test.
func load(path string) ([]Section, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var sections []Section
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&sections); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var faults []error
	for _, s := range sections {
		seen := map[string]bool{}
		for _, r := range s.Rows {
			fault := func(format string, args ...any) {
				faults = append(faults, fmt.Errorf("%s: %q: %s: %s", path, s.Title, r.ID, fmt.Sprintf(format, args...)))
			}
			switch {
			case r.ID == "" || r.Requires == "" || s.Title == "":
				fault("no title, id or requires")
			case seen[r.ID]:
				fault("is listed twice; expected each id once in its section")
			case !slices.Contains(levels, r.Level):
				fault("level %q; expected one of %q", r.Level, levels)
			case r.Weir == "" && r.Deviation == "":
				fault("neither weir nor deviation; say what weir does")
			case r.Read != "" && !isDay(r.Read):
				fault("read %q; expected the day of the reading, such as 2026-11-30", r.Read)
			}
			seen[r.ID] = true
		}
	}
	return sections, errors.Join(faults...)
}

// isDay says whether text is a day as ISO 8601 writes it.
func isDay(text string) bool {
	_, err := time.Parse(time.DateOnly, text)
	return err == nil
}

// judge returns what is wrong with the rows and their outcomes.
func judge(sections []Section, outcomes Outcomes) (faults []error) {
	for _, s := range sections {
		for _, r := range s.Rows {
			if len(r.Tests) == 0 && r.Deviation == "" {
				faults = append(faults, fmt.Errorf("%s, %s (%s): no test shows it, and no reason is given for a deviation", s.Title, r.ID, r.Level))
			}
			for _, name := range r.Tests {
				if passed, ran := outcomes[name]; !ran {
					faults = append(faults, fmt.Errorf("%s, %s: there is no test %s", s.Title, r.ID, name))
				} else if !passed {
					faults = append(faults, fmt.Errorf("%s, %s: %s does not pass", s.Title, r.ID, name))
				}
			}
		}
	}
	return faults
}

// result is the last column of a row.
func (r *Row) result(outcomes Outcomes) string {
	for _, name := range r.Tests {
		if !outcomes[name] {
			return "**FAIL**"
		}
	}
	switch {
	case r.Deviation != "":
		return "deviation"
	case len(r.Tests) == 0:
		return "**not shown**"
	}
	return "pass"
}

// count sums the results up.
func count(sections []Section, outcomes Outcomes) string {
	n := map[string]int{}
	rows, musts, shown, read := 0, 0, 0, 0
	for _, s := range sections {
		for _, r := range s.Rows {
			result := r.result(outcomes)
			rows++
			n[result]++
			if r.Read != "" {
				read++
			}
			if r.must() {
				musts++
				if result == "pass" {
					shown++
				}
			}
		}
	}
	text := fmt.Sprintf("%d rows: %d pass, %d deviations", rows, n["pass"], n["deviation"])
	if bad := rows - n["pass"] - n["deviation"]; bad > 0 {
		text += fmt.Sprintf(", %d not shown", bad)
	}
	return text + fmt.Sprintf("; of %d rows with MUST or MUST NOT, %d pass; %d rows were read again", musts, shown, read)
}

// does is what weir does, and why it does otherwise where it does.
func (r *Row) does() string {
	if r.Deviation == "" {
		return r.Weir
	}
	return strings.TrimSpace(r.Weir + " Deviation: " + r.Deviation)
}

// testCell lists the tests of a row.
func (r *Row) testCell() string {
	if len(r.Tests) == 0 {
		return ""
	}
	return "`" + strings.Join(r.Tests, "`<br>`") + "`"
}

// cell makes text fit between two bars.
func cell(text string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", `\|`)
}

// anchor is what a heading's link is on the usual forges.
func anchor(title string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(title) {
		switch {
		case c == ' ':
			b.WriteByte('-')
		case c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z':
			b.WriteRune(c)
		}
	}
	return b.String()
}
