// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weir/config"
)

// What weir check prints is its own words, one thing a line; what comes from files and their names
// is quoted. In JSON it is the same data, but nothing that a terminal acts on.
func TestCheckOutput(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x\n\u202e\x1b[2J: good: 9 ports")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	name := "y\x1b]0;z\x07\x7f\u0085\U000e0001\u202e\nw: good: 2 ports.yaml"
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for text, good := range map[string]bool{"version: 1\nwarnings: {ignore: [\"no-ports:*\"]}\n": true, "version: 1\n\"a\\nb: good: 1 ports\": 1\nports: [{name: a\u202e}]\n": false} {
		write(text)
		var out bytes.Buffer
		if err := check(&out, dir, "", false, false); (err == nil) != good {
			t.Fatalf("%q: %v", text, err)
		}
		for line := range strings.Lines(out.String()) {
			line = strings.TrimSuffix(line, "\n")
			if config.Printable(line) != line {
				t.Errorf("a line that acts on a terminal: %q", line)
			}
			if !strings.HasPrefix(line, "fault: ") && !good {
				t.Errorf("a line that is no fault: %q", line)
			}
		}
		if n := strings.Count(out.String(), "\n"); good && n != 1 {
			t.Errorf("%d lines, expected one: %q", n, out.String())
		}
		out.Reset()
		check(&out, dir, "", true, false)
		for line := range strings.Lines(out.String()) {
			if line = strings.TrimSuffix(line, "\n"); config.Printable(line) != line {
				t.Errorf("a line of JSON that acts on a terminal: %q", line)
			}
		}
		var answer struct {
			OK     bool
			Faults []config.Fault
		}
		if err := json.Unmarshal(out.Bytes(), &answer); err != nil || answer.OK != good || !good && answer.Faults[0].File != filepath.Join(dir, name) {
			t.Errorf("%v: %+v", err, answer)
		}
	}
}
