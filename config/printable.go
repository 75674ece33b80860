// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Printable returns s with escapes, as in Go, in place of what a terminal would act on: control
// characters, line breaks, changes of the direction of text, bytes that are no text.
func Printable(s string) string {
	if !strings.ContainsFunc(s, func(c rune) bool { return !strconv.IsPrint(c) || c == utf8.RuneError }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		c, n := utf8.DecodeRuneInString(s)
		if strconv.IsPrint(c) && (c != utf8.RuneError || n > 1) {
			b.WriteString(s[:n])
		} else {
			escaped := strconv.Quote(s[:n])
			b.WriteString(escaped[1 : len(escaped)-1])
		}
		s = s[n:]
	}
	return b.String()
}

// QuoteName returns a name from outside, a file's or a key's, in quotes if it could pass for
// something else than a name.
func QuoteName(s string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._/@+=,~-?<", c)
	}
	if s != "" && !strings.ContainsFunc(s, func(c rune) bool { return !plain(c) }) {
		return s
	}
	return strconv.Quote(s)
}
