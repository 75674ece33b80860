// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// readBoth reads a file in one piece and divided.
func readBoth(t *testing.T, text []byte) (whole, divided Faults, divides bool) {
	t.Helper()
	defer func(was int) { splitFrom = was }(splitFrom)
	parse := func(from int) string {
		splitFrom = from
		c, w, err := Parse([]File{{"x.yaml", text}})
		whole, _ := err.(Faults)
		divided = whole
		return fmt.Sprintf("%+v\n%v\n%v", c, w, err)
	}
	a := parse(1 << 30)
	whole = divided
	b := parse(0)
	if diff := cmp.Diff(a, b); diff != "" {
		t.Errorf("divided, it reads otherwise:\n%s\n%s", text, diff)
	}
	_, lists := split(text)
	return whole, divided, len(lists) > 0
}

// What is decoded item by item says the same as in one piece: text that is good, text with faults,
// and either of them cut and mixed.
func TestSplit(t *testing.T) {
	var texts [][]byte
	for _, name := range []string{"testdata/*.yaml", "testdata/*.txt", "../deploy/*/*.yaml"} {
		paths, _ := filepath.Glob(name)
		for _, p := range paths {
			b, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			if i := bytes.Index(b, []byte("version: 1")); i >= 0 {
				for part := range bytes.SplitSeq(b[i:], []byte("\nversion: 1")) {
					texts = append(texts, append([]byte("version: 1"), bytes.TrimPrefix(part, []byte("version: 1"))...))
				}
			}
		}
	}
	texts = append(texts,
		[]byte("version: 1\ninstances:\n- {name: a}\n- {name: \"b\n- c\", vpc: x}\n"),
		[]byte("version: 1\ninstances:\n  - name: |\n     a\n\n  - name: 'x\n  - y'\n"),
		[]byte("version: 1\ninstances:\n  # c\n  - # d\n    name: a\n    vpc: >-\n      b\n\n\nvpcs:\n- name: b\n"),
		[]byte("version: 1\ninstances:\n  - a\n    b\n  -\n  - - x\n    - y\n"),
		[]byte("version: 1\ninstances:\n\n{}\n"), []byte("version: 1\ninstances:\n  - a\n  }\n"),
		[]byte("version: 1\ninstances:\r\n  - {vpc: a,\r\n     name: b}\r\n"), []byte("version: 1\ninstances:\n  - a\r  - b\n"),
		[]byte("version: 1\nlog: \"\ninstances:\n  - a\n\"\n"), []byte("version: 1\nlog: {\ninstances:\n  - a\n}\n"),
		[]byte("version: 1\ninstances:\n  - a\ninstances:\n  - b\n"), []byte("version: 1\ninstances:\n  - &a b\n  - *a\n"),
		[]byte("version: 1\ninstances:\n  - a\n...\n---\nx: y\n"))
	divides := 0
	for _, text := range texts {
		if _, _, d := readBoth(t, text); d {
			divides++
		}
	}
	if divides < 10 {
		t.Errorf("%d of %d texts are divided", divides, len(texts))
	}
	r := rand.New(rand.NewPCG(1, 2))
	rounds := 3000
	if testing.Short() {
		rounds = 300
	}
	for range rounds {
		a, b := texts[r.IntN(len(texts))], texts[r.IntN(len(texts))]
		i, j := r.IntN(len(a)), r.IntN(len(b))
		mixed := append(bytes.Clone(a[:i]), b[j:min(len(b), j+r.IntN(60))]...)
		readBoth(t, append(mixed, a[min(len(a), i+r.IntN(8)):]...))
		if t.Failed() {
			return
		}
	}
}

// peak is the most heap that f had, above what there was.
func peak(f func()) uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, uint64(0)
	done := make(chan struct{})
	go func() { f(); close(done) }()
	for {
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapAlloc)
		select {
		case <-done:
			return most - before
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// manyInstances is a file of n instances as generators write them.
func manyInstances(n int) []byte {
	var b bytes.Buffer
	b.WriteString("version: 1\nvpcs:\n  - {name: a, subnets: [10.0.0.0/8]}\npools:\n  - {name: p, ranges: [100.64.0.0/10]}\ninstances:\n")
	for i := range n {
		fmt.Fprintf(&b, "  - {vpc: a, name: i-%d, addresses: [10.%d.%d.%d], mac: \"02:01:00:%02x:%02x:%02x\", external: {floating: [100.%d.%d.%d, 100.%d.%d.%d]}}\n",
			i, 1+i>>16, i>>8&255, i&255, i>>16&255, i>>8&255, i&255, 64+i>>16, i>>8&255, i&255, 96+i>>16, i>>8&255, i&255)
	}
	return b.Bytes()
}

// No file of the greatest size takes more than 256 MiB of heap, whatever it says.
func TestHostileFiles(t *testing.T) {
	const size, limit = 15 << 20, 256 << 20
	defer debug.SetGCPercent(debug.SetGCPercent(25)) // as control has it
	const list = "version: 1\ninstances:\n"
	again := func(s string) string { return strings.Repeat(s, size/len(s)) }
	texts := map[string]string{
		"empty items":       list + again("-\n"),
		"items, commented":  list + again("- #a\n"),
		"comments":          list + again("- a\n# c\n\n"),
		"deep items":        list + again("  - {name: a, vpc: b}\n"),
		"short instances":   list + again("- {name: a, vpc: b, addresses: [10.0.0.1]}\n"),
		"a list":            list + "  [" + again("a,") + "]\n",
		"lists":             list + "  [" + again("[],") + "]\n",
		"a mapping":         list + "  {" + again("a,") + "}\n",
		"mappings":          list + "  [" + again("a: b,") + "]\n",
		"keys":              list + again("? a\n"),
		"one item":          list + "- [" + again("a,") + "]\n",
		"routes of one VPC": "version: 1\nvpcs:\n- name: a\n  routes:\n" + again("  - {to: 0.0.0.0/0, drop: true}\n"),
		"anchors":           list + again("- &a x\n"),
		"other keys":        "version: 1\n" + again("a: b\n"),
		"one word":          list + "  " + again("a ") + "\n",
		"many lines":        again("\n"),
		"JSON":              `{"version": 1, "instances": [` + again(`{"name":"a","vpc":"b"},`) + "{}]}",
	}
	if testing.Short() {
		texts = map[string]string{"empty items": texts["empty items"], "keys": texts["keys"]}
	}
	for name, text := range texts {
		// All of it, which is refused, and as much of it as just is not.
		some := sort.Search(len(text), func(n int) bool {
			return weigh([]byte(text[:n])) > maxWeight || strings.Count(text[:n], "\n-")+strings.Count(text[:n], "\n  -") > maxItems
		})
		for _, text := range []string{text, text[:some-some/100]} {
			t.Run(name, func(t *testing.T) {
				var err error
				most := peak(func() { _, _, err = Parse([]File{{"x.yaml", []byte(text)}}) })
				if err == nil {
					t.Error("it is accepted")
				}
				if most > limit {
					t.Errorf("%d MiB of it take %d MiB of heap, expected at most %d", len(text)>>20, most>>20, limit>>20)
				}
			})
		}
	}
}

// A file of 100,000 instances is read.
func TestLargeFile(t *testing.T) {
	const n = 100_000
	c, _, err := Parse([]File{{"x.yaml", manyInstances(n)}})
	if err != nil {
		t.Fatalf("%.200v", err)
	}
	if got := len(c.VPCs[0].Instances); got != n {
		t.Errorf("%d instances, expected %d", got, n)
	}
}

// Something else than a file is refused, also when it takes the file's place between two looks at
// it. Nothing waits for it.
func TestNotFiles(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(path string) error{
		"a pipe":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"a socket":    func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o600, 0) },
		"a directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"a device":    func(p string) error { return os.Symlink(os.DevNull, p) },
	} {
		path := filepath.Join(dir, name+".yaml")
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if b, err := readFile(path); err == nil {
			t.Errorf("%s is read: %q", name, b)
		}
	}

	path, pipe, file := filepath.Join(dir, "x.yaml"), filepath.Join(dir, "pipe"), filepath.Join(dir, "file")
	err := errors.Join(os.WriteFile(path, []byte("version: 1\n"), 0o600), os.Link(path, file), unix.Mkfifo(pipe, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	swapped := chanOf(func() error {
		for next := filepath.Join(dir, "next"); ; {
			for _, other := range []string{pipe, file} {
				if err := errors.Join(os.Link(other, next), os.Rename(next, path)); err != nil {
					return err
				}
			}
			select {
			case <-stop:
				return nil
			default:
			}
		}
	})
	read := chanOf(func() error {
		files := 0
		for range 20_000 {
			if _, err := readFile(path); err == nil {
				files++
			}
		}
		if files == 0 || files == 20_000 {
			return fmt.Errorf("%d of 20,000 readings found a file", files)
		}
		return nil
	})
	select {
	case err := <-read:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("reading waits for a writer of the pipe")
	}
	close(stop)
	if err := <-swapped; err != nil {
		t.Error(err)
	}
}

func chanOf(f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

// Nobody waits: nothing is read.
func TestParseContext(t *testing.T) {
	ctx := &endsLater{Context: t.Context(), calls: 50}
	_, _, err := new(Parser).ParseContext(ctx, []File{{"x.yaml", manyInstances(20000)}})
	if err != errEnds {
		t.Errorf("after the context's end: %v, expected %v", err, errEnds)
	}
	if ctx.calls < -100 {
		t.Errorf("it goes on after the context's end: asked %d times more", -ctx.calls)
	}
}

var errEnds = fmt.Errorf("nobody waits")

// endsLater is a context that ends when it has been asked often.
type endsLater struct {
	context.Context
	calls int
}

func (c *endsLater) Err() error {
	if c.calls--; c.calls < 0 {
		return errEnds
	}
	return nil
}
