// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"go/format"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden file again")

// sample has lines that are too long in each kind of place. LONG is 95 columns of words.
const sample = `// SPDX-License-Identifier: Apache-2.0

// Package p says LONG
// and goes on
// in short lines.
//
// A second paragraph that is short
// keeps its breaks.
//
//   - one item says LONG
//     and goes on
//   - another item
//
// After the list:
//
//  1. first LONG
//  2. second
//
// After the second list:
//
//	code that is as it is LONG
//	a name   its meaning LONG
//
// | a | table that is as it is LONG |
//
// # A heading that is as it is LONG
//
// A line with https://example.com/ that is as it is LONG
//
// inside   columns that are as they are LONG
package p

// #define LONG 1 /* C keeps its lines: LONG LONG */
import "C"

//go:generate echo LONG LONG LONG

// F is 1 - 2 and LONG - LONG (RFC 3021) aaaaaaaaaaaaa aaaaaaaaaaaaaa aaaaaaaaaaaaaaaaaa aaaaaaaaa aaaaa (RFC 3021)
// after that.
func F() int {
	x := 1 // a comment after code LONG LONG
	// a comment below it LONG
	if x > 1 {
		// x is LONG
		// or not.
		return x
	}
	return 2 /* this stays LONG LONG */
}

func ExampleF() {
	// Output:
	// LONG LONG
}
`

// words is a text of n columns.
func words(n int) string { return strings.Repeat("word ", n/5-1) + "words" }

func TestRewrap(t *testing.T) {
	src := strings.ReplaceAll(sample, "LONG", words(95))
	got, err := rewrap("sample.go", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	golden := "testdata/rewrapped.txt"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("rewrapped differs from %s (-want +got):\n%s", golden, diff)
	}
	again, err := rewrap("sample.go", got)
	if err != nil || string(again) != string(got) {
		t.Errorf("a second time: %v, %s", err, cmp.Diff(string(got), string(again)))
	}
	if formatted, err := format.Source(got); err != nil || string(formatted) != string(got) {
		t.Errorf("gofmt changes the result: %v, %s", err, cmp.Diff(string(got), string(formatted)))
	}
}

func TestCheck(t *testing.T) {
	fits, long := strings.Repeat("x", 97), strings.Repeat("x", 98)
	for _, c := range []struct {
		name, src string
		want      []string
	}{
		{"100 columns", "package p\n\n// " + fits + "\n", nil},
		{"101 columns", "package p\n\n// " + long + "\n", []string{"p.go:3: the comment is 101 columns wide; expected at most 100"}},
		{"a tab is four", "package p\n\nfunc f() {\n\t// " + fits[4:] + "\n\t// " + fits[3:] + "\n}\n",
			[]string{"p.go:5: the comment is 101 columns wide; expected at most 100"}},
		{"a character is one", "package p\n\n// " + strings.Repeat("§", 97) + "\n", nil},
		{"a URL", "package p\n\n// https://" + long + "\n", nil},
		{"a directive", "package p\n\n//go:generate " + long + "\n", nil},
		{"after code", "package p\n\nvar x = 1 // " + long + "\n", nil},
		{"a string", "package p\n\nvar x = `\n// " + long + "`\n", nil},
		{"cgo", "package p\n\n// // " + long + "\nimport \"C\"\n", nil},
		{"a citation", "package p\n\n// f is as design 2.3 says.\nfunc f() {} // and design 8.\n", []string{
			`p.go:3: the comment cites "design 2.3"; expected what it says, or a document of the repository`,
			`p.go:4: the comment cites "design 8"; expected what it says, or a document of the repository`}},
		{"no citation", "package p\n\nvar x = \"design 2.3\" // the design of 2 things\n", nil},
	} {
		got, err := check("p.go", []byte(c.src))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// What is not Go is an error, and is not written.
func TestRunRefuses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "p.go")
	text := "// " + words(200) + "\npackage\n"
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := run([]string{name}, true); err == nil {
		t.Error("no error")
	}
	if got, _ := os.ReadFile(name); string(got) != text {
		t.Errorf("it was written: %q", got)
	}
}

func TestSame(t *testing.T) {
	for _, c := range []struct {
		name, a, b string
		same       bool
	}{
		{"a break", "package p // a b", "package p // a\n// b", true},
		{"a word", "package p // a b", "package p // a c", false},
		{"code", "package p; var x = 1", "package p; var x = 2", false},
		{"a statement that a comment swallows", "package p\nvar x = 1\n", "package p // var x = 1\n", false},
		{"a directive in prose", "package p\n\n//go:noinline\nfunc f() {}", "package p\n\n// go:noinline\nfunc f() {}", false},
	} {
		if err := same("p.go", []byte(c.a), []byte(c.b)); (err == nil) != c.same {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Every file of the repository, rewrapped, is one that gofmt leaves as it is.
func TestRepository(t *testing.T) {
	var names []string
	for _, pattern := range []string{"../../../../*/*.go", "../../../../*/*/*.go", "../../../../*/*/*/*.go"} {
		list, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, list...)
	}
	if len(names) < 50 {
		t.Fatalf("only %d files", len(names))
	}
	for _, name := range names {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		wrapped, err := rewrap(name, src)
		if err != nil {
			t.Error(err)
			continue
		}
		formatted, err := format.Source(wrapped)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(string(wrapped), string(formatted)); diff != "" {
			t.Errorf("%s: gofmt changes what rewrap makes (-want +got):\n%s", name, diff)
		}
	}
}
