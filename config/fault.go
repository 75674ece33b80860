// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Fault is one thing wrong with a configuration.
type Fault struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"` // from 1; 0: the file as a whole
	Path    string `json:"path,omitempty"` // such as vpcs[0].routes[1].gateway, counted within the file
	Message string `json:"message"`        // the value, what is wrong with it, what was expected

	// Of a warning: by what warnings.ignore knows it, such as no-address-for-route, blue/web-2.
	Name   string `json:"name,omitempty"`
	Object string `json:"object,omitempty"`
}

// Warning has the form of a Fault. It reports what is legal but probably wrong.
type Warning = Fault

// String returns the fault on one line: file:line: path: message. What comes from files and their
// names is quoted where it could be taken for something else.
func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(QuoteName(f.File))
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d", f.Line)
	}
	if f.Path != "" {
		b.WriteString(": " + Printable(f.Path))
	}
	b.WriteString(": " + Printable(f.Message))
	return b.String()
}

// Faults is everything wrong with a configuration, by file and line. Never empty as an error.
type Faults []Fault

// Error returns the faults, one a line.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.String()
	}
	return strings.Join(lines, "\n")
}

// maxFaults bounds what one report lists: a file of garbage must not become a report of gigabytes.
const maxFaults = 10000

// findings collects faults or warnings.
type findings struct {
	list []Fault
	more bool // there were some beyond maxFaults
}

func (f *findings) add(at *spot, format string, args ...any) {
	if len(f.list) >= maxFaults {
		f.more = true
		return
	}
	f.list = append(f.list, Fault{File: at.file, Line: at.line, Path: at.path(), Message: Printable(fmt.Sprintf(format, args...))})
}

// join adds what was found elsewhere.
func (f *findings) join(list []Fault) {
	room := maxFaults - len(f.list)
	f.more = f.more || len(list) > room
	f.list = append(f.list, list[:min(len(list), room)]...)
}

// sorted returns what was found by file and line; a last entry says so if it is not all.
func (f *findings) sorted() []Fault {
	slices.SortFunc(f.list, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Path, b.Path), cmp.Compare(a.Message, b.Message))
	})
	if f.more {
		last := f.list[len(f.list)-1]
		return append(f.list, Fault{File: last.File, Message: fmt.Sprintf("there are more; only these %d are listed", maxFaults)})
	}
	return f.list
}

// spot is the place of a value: a file, a line and the way to it through the document.
type spot struct {
	file  string
	line  int
	up    *spot  // nil: the document itself
	key   string // in a mapping
	index int    // in a list, where key is empty
}

// path returns the way from the document to the value.
func (s *spot) path() string {
	switch {
	case s.up == nil:
		return ""
	case s.key == "":
		return fmt.Sprintf("%s[%d]", s.up.path(), s.index)
	case s.up.up == nil:
		return QuoteName(s.key)
	}
	return s.up.path() + "." + QuoteName(s.key)
}

// String returns file:line.
func (s *spot) String() string { return fmt.Sprintf("%s:%d", QuoteName(s.file), s.line) }

// owner is what a value belongs to, as messages name it. The zero owner means that nothing owns the
// value.
type owner struct {
	what, name string // such as instance, web-1
	spot       *spot  // of the value
}

// String returns the owner and the place of its value.
func (o owner) String() string { return fmt.Sprintf("%s %q at %v", o.what, o.name, o.spot) }
