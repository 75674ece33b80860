// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/config"
	"weir/pipeline/generation"
	"weir/pipeline/memory"
	"weir/pipeline/state"
)

// Of a segment whose header is not this program's, nothing is read but the header.
func TestAttachRefuses(t *testing.T) {
	cfg, _, err := config.Parse([]config.File{{Name: "test.yaml", Data: []byte(`version: 1
ports:
  - {name: in, side: inside, device: net_null0}
  - {name: out, side: outside, device: net_null1, addresses: [198.51.100.2/24], next_hops: [198.51.100.1]}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	// fresh returns new segments, and what gives their descriptors away as a socket does.
	var made *state.State // by the last call
	fresh := func(t *testing.T) (ofState *memory.Segment, ofGeneration *memory.Segment) {
		s, err := state.New(state.Sizes{Workers: 1, Sessions: 64})
		if err != nil {
			t.Fatal(err)
		}
		made = s
		g, err := generation.NewCompiler(s, nil).Compile(cfg)
		if err != nil {
			t.Fatal(err)
		}
		anySource(g)
		t.Cleanup(func() {
			g.Close()
			s.Close()
		})
		return s.Segment, &g.Segment
	}
	attach := map[string]func(fd int) error{
		"state": func(fd int) error {
			growing, err := unix.FcntlInt(uintptr(made.GrowingFD()), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			s, err := state.Attach(fd, growing)
			if err == nil {
				err = s.Close()
			}
			return err
		},
		"generation": func(fd int) error {
			var g generation.Generation
			err := g.Attach(fd)
			if err == nil {
				err = g.Close()
			}
			return err
		},
	}
	for _, c := range []struct {
		name   string
		damage func(h *memory.Header)
		want   string // in the error; "": none
	}{
		{"whole", func(*memory.Header) {}, ""},
		{"another layout", func(h *memory.Header) { h.Layout++ }, "the two processes are of different versions; restart both"},
		{"another size", func(h *memory.Header) { h.Size-- }, "its header says"},
		{"not whole", func(h *memory.Header) { h.Ready = 0 }, "its maker died before it was whole"},
		{"not ours", func(h *memory.Header) { h.Magic++ }, "not a weir segment"},
	} {
		t.Run(c.name, func(t *testing.T) {
			state, generation := fresh(t)
			for name, s := range map[string]*memory.Segment{"state": state, "generation": generation} {
				c.damage(memory.At[memory.Header](s, 0))
				before := openDescriptors(t)
				fd, err := unix.FcntlInt(uintptr(s.FD()), unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				err = attach[name](fd)
				if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("%s: %v, expected %q", name, err, c.want)
				}
				if after := openDescriptors(t); after != before {
					t.Errorf("%s: %d descriptors are open, %d were before: attaching takes its descriptor over, whatever happens", name, after, before)
				}
			}
		})
	}
	t.Run("damaged behind its header", func(t *testing.T) {
		_, generation := fresh(t)
		*memory.At[byte](generation, generation.Size()-1) ^= 1
		fd, err := unix.FcntlInt(uintptr(generation.FD()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := attach["generation"](fd); err != memory.ErrDamaged {
			t.Error(err)
		}
	})
	t.Run("a state is no generation", func(t *testing.T) {
		state, generation := fresh(t)
		for name, s := range map[string]*memory.Segment{"state": generation, "generation": state} {
			fd, err := unix.FcntlInt(uintptr(s.FD()), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			// A state is mapped to write, which nobody may whom a generation is handed to.
			want := map[string]string{"state": "operation not permitted", "generation": "segment layout"}[name]
			if err := attach[name](fd); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, expected %q", name, err, want)
			}
		}
	})
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
