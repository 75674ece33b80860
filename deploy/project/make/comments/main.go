// SPDX-License-Identifier: Apache-2.0

// Comments keeps the comments of Go files within 100 columns.
//
//	comments [-w] PATH...
//
// It reports each // comment on a separate line that is longer, and each comment that cites a
// section of a design document, which nobody who has only the repository can look up. A tab counts
// as four columns. Lines with a URL, directives, C code above import "C", the expected output of
// examples, and comments after code are exempt. A directory means all Go files below it but
// those in testdata.
//
// With -w it first rewraps paragraphs and list items that have a line too long. Indented code,
// tables, headings and link definitions stay as they are, and so does all code: a file is written
// only if its tokens and the words of its comments are the same as before.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	maxColumns = 100
	tabColumns = 4
)

func main() {
	write := flag.Bool("w", false, "rewrap what is too long")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: comments [-w] PATH...")
		os.Exit(2)
	}
	found, err := run(flag.Args(), *write)
	for _, f := range found {
		fmt.Println(f)
	}
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "comments:", err)
		os.Exit(2)
	case len(found) > 0:
		os.Exit(1)
	}
}

// run checks all Go files at paths and returns what it finds in them.
func run(paths []string, write bool) (found []string, err error) {
	for _, path := range paths {
		walkErr := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git"):
				return filepath.SkipDir
			case d.IsDir() || filepath.Ext(name) != ".go":
				return nil
			}
			f, err := file(name, write)
			found = append(found, f...)
			return err
		})
		err = errors.Join(err, walkErr)
	}
	return found, err
}

// file checks one file, after rewrapping it if it is to be written.
func file(name string, write bool) ([]string, error) {
	src, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if write {
		wrapped, err := rewrap(name, src)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(wrapped, src) {
			if err := os.WriteFile(name, wrapped, 0o644); err != nil {
				return nil, err
			}
			src = wrapped
		}
	}
	return check(name, src)
}

var citation = regexp.MustCompile(`\bdesign [0-9][0-9.]*`)

// check returns a line for each fault in src.
func check(name string, src []byte) ([]string, error) {
	c, err := parse(name, src)
	if err != nil {
		return nil, err
	}
	var found []string
	for i, line := range c.lines {
		if n := columns(line); c.whole[i] && !exempt(line) && n > maxColumns {
			found = append(found, fmt.Sprintf("%s:%d: the comment is %d columns wide; expected at most %d", name, i+1, n, maxColumns))
		}
	}
	for _, g := range c.file.Comments {
		for _, comment := range g.List {
			for i, line := range strings.Split(comment.Text, "\n") {
				if m := citation.FindString(line); m != "" {
					found = append(found, fmt.Sprintf("%s:%d: the comment cites %q; expected what it says, or a document of the repository",
						name, c.fset.Position(comment.Pos()).Line+i, strings.TrimRight(m, ".")))
				}
			}
		}
	}
	return found, nil
}

// source is a parsed file and its lines.
type source struct {
	fset  *token.FileSet
	file  *ast.File
	lines []string
	whole []bool // the line is a // comment and nothing else, and not of a kind that is exempt as a group
}

func parse(name string, src []byte) (*source, error) {
	c := &source{fset: token.NewFileSet(), lines: strings.Split(string(src), "\n")}
	var err error
	if c.file, err = parser.ParseFile(c.fset, name, src, parser.ParseComments|parser.SkipObjectResolution); err != nil {
		return nil, err
	}
	c.whole = make([]bool, len(c.lines))
	for _, g := range c.file.Comments {
		if c.code(g) {
			continue
		}
		for _, comment := range g.List {
			// Not Position: a line directive must not change the number.
			i := c.fset.PositionFor(comment.Pos(), false).Line - 1
			c.whole[i] = strings.HasPrefix(strings.TrimLeft(c.lines[i], "\t "), "//")
		}
	}
	return c, nil
}

var output = regexp.MustCompile(`(?i)^//\s*(unordered )?output:`)

// code reports whether the bytes of a group mean something to a program: cgo's C, or an example's
// output.
func (c *source) code(g *ast.CommentGroup) bool {
	for _, d := range c.file.Decls {
		d, ok := d.(*ast.GenDecl)
		if !ok || d.Tok != token.IMPORT {
			continue
		}
		for _, s := range d.Specs {
			if s := s.(*ast.ImportSpec); s.Path.Value == `"C"` && (d.Doc == g || s.Doc == g) {
				return true
			}
		}
	}
	return slices.ContainsFunc(g.List, func(c *ast.Comment) bool { return output.MatchString(c.Text) })
}

// columns returns the width of a line.
func columns(line string) int {
	return utf8.RuneCountInString(line) + strings.Count(line, "\t")*(tabColumns-1)
}

// A directive has no space after its slashes (see go doc go/ast.CommentGroup.Text).
var directive = regexp.MustCompile(`^\s*//(line |extern |export |[a-z0-9]+:[a-z0-9])`)

// exempt reports whether a comment line may be of any length.
func exempt(line string) bool { return strings.Contains(line, "://") || directive.MatchString(line) }

var (
	listItem = regexp.MustCompile(`^( +(?:[-*+•]|[0-9]+[.)]) +)\S`)
	// What begins a line and is no prose: a list without indentation, a table, a heading, a link
	// definition.
	special        = regexp.MustCompile(`^(?:[-*+•|#]+|[0-9]+[.)]|\[[^\]]+\]:|[+]build|SPDX-License-Identifier:)(?:\s|$)`)
	columnsOfTable = regexp.MustCompile(`\S(?:  |\t)`)
)

// rewrap returns src with each paragraph and list item rewrapped that has a line too long.
func rewrap(name string, src []byte) ([]byte, error) {
	c, err := parse(name, src)
	if err != nil || bytes.ContainsRune(src, '\r') {
		return src, err
	}
	var out []string
	for i := 0; i < len(c.lines); {
		n := c.block(i)
		if n == 0 {
			out = append(out, c.lines[i])
			i++
			continue
		}
		out = append(out, wrap(c.lines[i:i+n])...)
		i += n
	}
	wrapped := []byte(strings.Join(out, "\n"))
	if err := same(name, src, wrapped); err != nil {
		return nil, err
	}
	return wrapped, nil
}

// block returns how many lines from i on are one paragraph or list item: 0 for what stays as it is.
func (c *source) block(i int) int {
	indent, first, ok := c.text(i)
	if !ok {
		return 0
	}
	hanging := ""
	if m := listItem.FindStringSubmatch(first); m != nil {
		hanging = strings.Repeat(" ", utf8.RuneCountInString(m[1]))
	} else if first[0] == ' ' || first[0] == '\t' {
		return 0
	}
	n := 1
	for ; i+n < len(c.lines); n++ {
		in, next, ok := c.text(i + n)
		rest, found := strings.CutPrefix(next, hanging)
		if !ok || in != indent || !found || rest[0] == ' ' || rest[0] == '\t' || hanging != "" && listItem.MatchString(next) {
			break
		}
	}
	return n
}

// text returns the indentation of a comment line and what follows "//", without the one space that
// prose has. Not ok: it is not a comment by itself, a directive, or empty.
func (c *source) text(i int) (indent, text string, ok bool) {
	line := c.lines[i]
	if !c.whole[i] || directive.MatchString(line) {
		return "", "", false
	}
	indent, text, _ = strings.Cut(line, "//")
	text = strings.TrimPrefix(strings.TrimRight(text, " \t"), " ")
	return indent, text, text != ""
}

// wrap wraps the lines of one block if one of them is too long and all of them are prose.
func wrap(lines []string) []string {
	long := func(l string) bool { return columns(l) > maxColumns && !exempt(l) }
	if !slices.ContainsFunc(lines, long) {
		return lines
	}
	indent, text, _ := strings.Cut(lines[0], "//")
	text = strings.TrimPrefix(text, " ")
	marker := ""
	if m := listItem.FindStringSubmatch(text); m != nil {
		marker = m[1]
	}
	var words []string
	for i, l := range lines {
		_, t, _ := strings.Cut(l, "//")
		t = strings.TrimSpace(t)
		if i == 0 {
			t = strings.TrimPrefix(t, strings.TrimSpace(marker))
			t = strings.TrimSpace(t)
		}
		if special.MatchString(t) || columnsOfTable.MatchString(t) {
			return lines
		}
		for _, w := range strings.Fields(t) {
			if n := len(words); n > 0 && (special.MatchString(w) || output.MatchString("//"+w)) {
				words[n-1] += " " + w // at a line's begin it would be read as more than a word
				continue
			}
			words = append(words, w)
		}
	}
	rest := indent + "// " + strings.Repeat(" ", utf8.RuneCountInString(marker))
	line := indent + "// " + marker + words[0]
	var out []string
	for _, w := range words[1:] {
		if columns(line)+1+columns(w) > maxColumns {
			out = append(out, line)
			line = rest + w
			continue
		}
		line += " " + w
	}
	return append(out, line)
}

// same returns an error unless two texts have the same tokens, and comments of the same words.
func same(name string, a, b []byte) error {
	x, y := tokens(a), tokens(b)
	if !slices.Equal(x.code, y.code) || !slices.Equal(x.words, y.words) || !slices.Equal(x.directives, y.directives) {
		return fmt.Errorf("%s: rewrapping would change more than the breaks of its comments' lines: nothing was written", name)
	}
	return nil
}

// content is what must not change.
type content struct{ code, words, directives []string }

func tokens(src []byte) (t content) {
	var s scanner.Scanner
	fset := token.NewFileSet()
	s.Init(fset.AddFile("", fset.Base(), len(src)), src, nil, scanner.ScanComments)
	for {
		_, tok, lit := s.Scan()
		switch {
		case tok == token.EOF:
			return t
		case tok != token.COMMENT:
			t.code = append(t.code, tok.String()+" "+lit)
		case directive.MatchString(lit):
			t.directives = append(t.directives, lit)
		default:
			t.words = append(t.words, strings.Fields(strings.TrimPrefix(lit, "//"))...)
		}
	}
}
