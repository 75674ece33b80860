// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// reader turns YAML into a document. It works on nodes, because only a node knows its line. This
// file knows YAML and none of the keys; schema.go has those.
type reader struct {
	missing bool // some value was refused unread
	faults  findings
	doc     *document
	ctx     context.Context    // its end ends the reading; nil: nothing does
	text    []byte             // of the file, while it is read
	lists   map[string][]piece // of the document, decoded item by item: see split
	torn    bool               // an item did not decode by itself
}

// ended reports whether nobody waits for the result any more.
func (r *reader) ended() bool { return r.ctx != nil && r.ctx.Err() != nil }

// value is a node and its place.
type value struct {
	node *yaml.Node
	spot *spot
}

// at is a value as the user wrote it. An absent value has no spot, a faulty one is not ok.
type at[T any] struct {
	value T
	spot  *spot
	ok    bool
}

// given reports whether the file has the key, whatever its value.
func (a at[T]) given() bool { return a.spot != nil }

// or returns the value, or def when there is none.
func (a at[T]) or(def T) T {
	if a.ok {
		return a.value
	}
	return def
}

// parseDocument returns the one document in f as a mapping that begins with a version we read, or
// reports why not.
func (r *reader) parseDocument(f File) (value, bool) {
	root := value{spot: &spot{file: f.Name, line: 1}}
	if len(f.Data) > MaxFileSize {
		root.spot.line = 0
		r.faults.add(root.spot, "cannot be read: %v", errTooLarge)
		return root, false
	}
	if i := firstUnreadable(f.Data); i >= 0 {
		root.spot.line += bytes.Count(f.Data[:i], []byte("\n"))
		r.faults.add(root.spot, "byte 0x%02x is not text; expected UTF-8", f.Data[i])
		return root, false
	}
	text := f.Data
	if r.lists != nil {
		text, r.lists = split(f.Data)
		if r.text = f.Data; r.lists == nil {
			text = f.Data
		}
	}
	err := tooHeavy(text)
	if err != nil {
		root.spot.line = 0
		r.faults.add(root.spot, "cannot be read: %v", err)
		return root, false
	}
	node, err := decode(text)
	if err != nil {
		r.torn = r.lists != nil
		line, message := yamlError(err)
		root.spot.line = line
		for at := line; at <= line+1; at++ { // the parser may name the line before
			if a := unquoted.FindSubmatch(lineOf(f.Data, at)); a != nil {
				root.spot.line = at
				r.faults.add(root.spot, "%s; put %s in quotes", message, clip(string(a[1])))
				return root, false
			}
		}
		r.faults.add(root.spot, "%s; expected one YAML document", message)
		return root, false
	}
	root.node, root.spot.line = node, max(node.Line, 1)
	if !r.plain(root) {
		return root, false
	}
	if node.Kind != yaml.MappingNode {
		r.faults.add(root.spot, "the file holds %s; expected a mapping that begins with version: %d", kindOf(node), Version)
		return root, false
	}
	return root, r.version(root)
}

// version comes before everything else: the rest of a file of another version may mean anything.
func (r *reader) version(root value) bool {
	if len(root.node.Content) < 2 || root.node.Content[0].Value != "version" {
		r.faults.add(root.spot, "the file does not begin with a version; expected version: %d as its first key", Version)
		return false
	}
	v := root.node.Content[1]
	if v.Kind != yaml.ScalarNode || v.ShortTag() != "!!int" || v.Value != strconv.Itoa(Version) {
		s := &spot{file: root.spot.file, line: v.Line, up: root.spot, key: "version"}
		r.faults.add(s, "%s is not a version that this program reads; expected %d", quote(v), Version)
		return false
	}
	return true
}

// firstUnreadable returns the offset of the first byte that is not UTF-8 text, or -1.
func firstUnreadable(data []byte) int {
	if i := bytes.IndexByte(data, 0); i >= 0 && utf8.Valid(data[:i]) {
		return i
	}
	if utf8.Valid(data) {
		return -1
	}
	for i := 0; ; {
		c, n := utf8.DecodeRune(data[i:])
		if c == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
}

// decode returns the root of the only document in data. The parser gets whatever a user's editor
// left, and a panic in it must not take the gateway down.
func decode(data []byte) (root *yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			root, err = nil, fmt.Errorf("yaml: %v", p)
		}
	}()
	d := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	if err := d.Decode(&document); err == io.EOF {
		return nil, errors.New("yaml: the file is empty")
	} else if err != nil {
		return nil, err
	}
	if len(document.Content) != 1 {
		return nil, errors.New("yaml: the file is empty")
	}
	switch err := d.Decode(&second); {
	case err == nil:
		return nil, fmt.Errorf("yaml: line %d: a second document begins", second.Line)
	case err != io.EOF:
		return nil, err
	}
	return document.Content[0], nil
}

// unquoted finds an IPv6 address or prefix that begins with a colon, which YAML takes for a
// mapping's.
var unquoted = regexp.MustCompile(`[\[{,:\s](::[0-9a-fA-F:.]*(?:/[0-9]+)?)(?:[\]},\s]|$)`)

// lineOf returns a line of a file, from 1.
func lineOf(data []byte, line int) []byte {
	i := 0
	for l := range bytes.Lines(data) { // Split would take more memory than the file
		if i++; i == line {
			return bytes.TrimSuffix(l, []byte("\n"))
		}
	}
	return nil
}

var yamlErrorForm = regexp.MustCompile(`(?s)^yaml: (?:line (\d+): )?(.*)$`)

// yamlError takes the line number out of a parser error.
func yamlError(err error) (line int, message string) {
	m := yamlErrorForm.FindStringSubmatch(err.Error())
	if m == nil {
		return 1, err.Error()
	}
	line, _ = strconv.Atoi(m[1])
	return max(line, 1), m[2]
}

// plain refuses aliases and what they refer to, which make a small file large and hide where a
// value is, and tags, which give a value another type than it seems to have.
func (r *reader) plain(v value) bool {
	if v.node.Kind == yaml.AliasNode {
		r.faults.add(v.spot, "the alias *%s is not accepted; expected the value itself", clip(v.node.Value))
		r.missing = true
		return false
	}
	if v.node.Anchor != "" {
		r.faults.add(v.spot, "the anchor &%s is not accepted; expected the value alone", clip(v.node.Anchor))
		r.missing = true
		return false
	}
	if v.node.Style&yaml.TaggedStyle != 0 {
		r.faults.add(v.spot, "the tag %s is not accepted; expected the value alone", clip(v.node.Tag))
		r.missing = true
		return false
	}
	return true
}

// object yields the keys of a mapping and their values: those of keys, each at most once.
// Everything else is a fault.
func (r *reader) object(v value, keys []string) iter.Seq2[string, value] {
	return func(yield func(string, value) bool) {
		if v.node.Kind != yaml.MappingNode {
			r.faults.add(v.spot, "found %s; expected a mapping with keys among %s", kindOf(v.node), strings.Join(keys, ", "))
			return
		}
		var lines [16]int // of the keys seen, as keys has them
		for i := 0; i+1 < len(v.node.Content); i += 2 {
			key := v.node.Content[i]
			child := value{v.node.Content[i+1], &spot{file: v.spot.file, line: key.Line, up: v.spot, key: clip(key.Value)}}
			k := slices.Index(keys, key.Value)
			switch {
			case key.ShortTag() == "!!merge":
				r.faults.add(child.spot, "merge keys are not accepted; expected the keys themselves")
			case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || key.Anchor != "":
				child.spot.key = "?"
				r.faults.add(child.spot, "the key is %s; expected one of %s", kindOf(key), strings.Join(keys, ", "))
			case k < 0 && gone[child.spot.path()] != "":
				r.faults.add(child.spot, "%s", gone[child.spot.path()])
			case k < 0:
				r.faults.add(child.spot, "unknown key; expected one of %s", strings.Join(keys, ", "))
			case lines[k] != 0:
				r.faults.add(child.spot, "the key is already on line %d; expected it once", lines[k])
			default:
				lines[k] = key.Line
				if r.plain(child) && !yield(key.Value, child) {
					return
				}
			}
			if r.faults.more {
				return // a file of garbage: stop before it fills the memory
			}
		}
	}
}

// list yields the elements of a list.
func (r *reader) list(v value, what string) iter.Seq[value] {
	return func(yield func(value) bool) {
		if v.spot.up != nil && v.spot.up.up == nil && len(r.lists[v.spot.key]) > 0 {
			r.items(v, what, yield)
			return
		}
		if v.node.Kind != yaml.SequenceNode {
			r.missing = r.missing || v.spot.up != nil && v.spot.up.up == nil // what others refer to
			r.faults.add(v.spot, "found %s; expected a list of %s ([] for none)", kindOf(v.node), what)
			return
		}
		for i, n := range v.node.Content {
			child := value{n, &spot{file: v.spot.file, line: n.Line, up: v.spot, index: i}}
			if r.plain(child) && !yield(child) || r.faults.more || r.ended() {
				return
			}
		}
	}
}

// items is list for one that is decoded item by item.
func (r *reader) items(v value, what string, yield func(value) bool) {
	list := r.lists[v.spot.key]
	if v.node.Kind != yaml.ScalarNode || v.node.Value != "" {
		r.torn = true // the rest of the document does not end where the list begins
		return
	}
	if len(list) > maxItems {
		r.faults.add(v.spot, "more than %d %s are in one file; expected the others in another file", maxItems, what)
		return
	}
	for i, p := range list {
		n := r.item(p)
		if n == nil {
			r.torn = true
			return
		}
		child := value{n, &spot{file: v.spot.file, line: n.Line, up: v.spot, index: i}}
		if r.plain(child) && !yield(child) || r.faults.more || r.ended() {
			return
		}
	}
}

// text reads a string with parse, whose error says what is wrong with it and what was expected.
func text[T any](r *reader, v value, parse func(string) (T, error)) at[T] {
	a := at[T]{spot: v.spot}
	if v.node.Kind != yaml.ScalarNode || v.node.ShortTag() != "!!str" {
		hint := ""
		if v.node.Kind == yaml.ScalarNode {
			hint = " (put it in quotes if it is meant as text)"
		}
		r.faults.add(v.spot, "found %s; expected text%s", kindOf(v.node), hint)
		return a
	}
	var err error
	if a.value, err = parse(v.node.Value); err != nil {
		r.faults.add(v.spot, "%q %v", clip(v.node.Value), err)
		return a
	}
	a.ok = true
	return a
}

// texts reads a list of strings. Faulty elements stay in it, not ok.
func texts[T any](r *reader, v value, what string, parse func(string) (T, error)) []at[T] {
	var all []at[T]
	for e := range r.list(v, what) {
		all = append(all, text(r, e, parse))
	}
	return all
}

// integer reads a decimal number from low to high.
func (r *reader) integer(v value, low, high int) at[int] {
	a := at[int]{spot: v.spot}
	n, err := strconv.Atoi(v.node.Value)
	if v.node.Kind != yaml.ScalarNode || v.node.ShortTag() != "!!int" || err != nil || n < low || n > high {
		r.faults.add(v.spot, "%s is not accepted; expected a whole number from %d to %d", quote(v.node), low, high)
		return a
	}
	a.value, a.ok = n, true
	return a
}

// truth reads true or false.
func (r *reader) truth(v value) at[bool] {
	if v.node.Kind != yaml.ScalarNode || v.node.ShortTag() != "!!bool" {
		r.faults.add(v.spot, "%s is not accepted; expected true or false", quote(v.node))
		return at[bool]{spot: v.spot}
	}
	return at[bool]{strings.EqualFold(v.node.Value, "true"), v.spot, true}
}

// kindOf says what a node is.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch tag := n.ShortTag(); tag {
	case "!!str":
		return "text"
	case "!!int", "!!float":
		return "the number " + clip(n.Value)
	case "!!bool":
		return "the boolean " + clip(n.Value)
	case "!!null":
		return "nothing"
	case "!!timestamp":
		return "the date " + clip(n.Value)
	default:
		return "a value tagged " + clip(tag)
	}
}

// quote returns a node's value as text, or what it is.
func quote(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null" {
		return strconv.Quote(clip(n.Value))
	}
	return kindOf(n)
}

// clip keeps what a user wrote short enough for a message.
func clip(s string) string {
	const limit = 80
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "..."
}
