// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"fmt"

	"gopkg.in/yaml.v3"
)

// A YAML tree takes up to a hundred times the memory of its text. So the tree of a large file is
// never whole: where a list of the document is written one item after the other, in block style,
// each item is decoded by itself, and forgotten before the next. What cannot be divided so, or has
// an item that does not decode by itself, is decoded in one piece. Either way text is held against
// maxWeight before it is decoded.

// Bounds of one file.
const (
	maxWeight = 1_300_000 // of what is decoded in one piece: about 200 MiB of tree
	maxItems  = 1 << 17   // items of one list that is decoded piece by piece
)

// splitFrom is the size from which a file is divided. Tests change it.
var splitFrom = 64 << 10

// weigh bounds from above, cheaply, how many nodes of a YAML tree a text makes. Each node needs one
// of these characters; comments cost like nodes.
func weigh(text []byte) (weight int) {
	for i, c := range text {
		switch c {
		case ',', '[', '{':
			weight += 2 // {a,b} are two keys and two values that nobody wrote
		case '#':
			weight += 3
		case '?':
			weight += 3
		case '-':
			if endsWord(text, i) {
				weight++
			}
		case ':': // a key and a value
			if endsWord(text, i) || i > 0 && (text[i-1] == '"' || text[i-1] == '\'') {
				weight += 2
			}
		}
	}
	return weight
}

// endsWord reports whether a character has a meaning by what follows it: inside of a word it has
// none.
func endsWord(text []byte, i int) bool {
	return i+1 == len(text) || bytes.IndexByte([]byte(" \t\r\n,[]{}"), text[i+1]) >= 0
}

// tooHeavy returns what is wrong with a text of more nodes than are decoded at once; nil: nothing.
func tooHeavy(text []byte) error {
	if weigh(text) > maxWeight {
		return fmt.Errorf("it has too many values to be read at once; expected lists with one item a line, as `- {name: ...}`, or more files with fewer values in each")
	}
	return nil
}

// piece is the text of one item of a list.
type piece struct{ from, to, line int }

// split finds the items of the lists in a document: by key, and the rest with empty lines in their
// place. Where it is not sure it returns nil: only text whose every line break is \n, and whose
// lines at column 0 are keys, comments or items.
func split(text []byte) (rest []byte, lists map[string][]piece) {
	if bytes.ContainsAny(text, "\u0085\u2028\u2029\ufeff") {
		return nil, nil
	}
	lists = map[string][]piece{}
	rest = make([]byte, 0, len(text))
	var key string // whose list it is; empty: of no list
	var items []piece
	indent, open := -1, false // of the items; one is under way
	end := func(at int) {
		if open {
			items[len(items)-1].to = at
			open = false
		}
		if key != "" {
			lists[key] = items
		}
		key, items, indent = "", nil, -1
	}
	for at, line := 0, 1; at < len(text); line++ {
		next := len(text)
		if i := bytes.IndexByte(text[at:], '\n'); i >= 0 {
			next = at + i + 1
		}
		whole := text[at:next]
		words := bytes.TrimRight(whole, " \r\n")
		if bytes.IndexByte(words, '\r') >= 0 {
			return nil, nil // a line break to YAML
		}
		column := len(words) - len(bytes.TrimLeft(words, " "))
		words = words[column:]
		item := key != "" && (bytes.HasPrefix(words, []byte("- ")) || len(words) == 1 && words[0] == '-') && (indent < 0 || column == indent)
		switch {
		case len(words) == 0 || words[0] == '#':
		case words[0] == '\t':
			return nil, nil
		case item:
			if open {
				items[len(items)-1].to = at
			}
			indent, open = column, true
			if len(items) <= maxItems { // one more is a fault
				items = append(items, piece{from: at, line: line})
			}
		case open && column > indent:
		case column == 0:
			end(at)
			name, value, colon := bytes.Cut(words, []byte(":"))
			if !colon || !isKey(name) || len(value) > 0 && value[0] != ' ' {
				return nil, nil
			}
			if len(bytes.TrimSpace(value)) == 0 && (string(name) == "vpcs" || string(name) == "instances") {
				if lists[string(name)] != nil {
					return nil, nil // twice: a fault, which reading it whole tells
				}
				key = string(name)
			}
		case key != "":
			return nil, nil
		}
		if open {
			rest = append(rest, '\n')
		} else {
			rest = append(rest, whole...)
		}
		at = next
	}
	end(len(text))
	return rest, lists
}

func isKey(b []byte) bool {
	for _, c := range b {
		if (c < 'a' || c > 'z') && c != '_' {
			return false
		}
	}
	return len(b) > 0
}

// item decodes one item of a list that was divided. It returns nil for one that does not decode by
// itself.
func (r *reader) item(p piece) *yaml.Node {
	text := r.text[p.from:p.to]
	if tooHeavy(text) != nil {
		return nil
	}
	list, err := decode(text)
	if err != nil || list.Kind != yaml.SequenceNode || len(list.Content) != 1 || list.Anchor != "" || list.Style&yaml.TaggedStyle != 0 {
		return nil
	}
	move(list.Content[0], p.line-1)
	return list.Content[0]
}

// move adds to the lines of a tree.
func move(n *yaml.Node, lines int) {
	n.Line += lines
	for _, c := range n.Content {
		move(c, lines)
	}
}
