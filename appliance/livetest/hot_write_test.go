// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The writers change what path holds, each in its own way. A configuration comes in parts, one for
// each file; those that write one file get one part.
type writer struct {
	name  string
	files int
	// prepare makes path, and returns what writes round after round.
	prepare func(dir, path string, parts []string) (write func(round int, parts []string) error, err error)
}

var partNames = []string{"one.yaml", "two.yaml", "three.yaml"}

// writeParts makes a directory of files.
func writeParts(dir string, parts []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for i, p := range parts {
		if err := os.WriteFile(filepath.Join(dir, partNames[i]), []byte(p), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// whole is a writer's prepare for one plain file.
func whole(write func(dir, path, text string) error) func(dir, path string, parts []string) (func(int, []string) error, error) {
	return func(dir, path string, parts []string) (func(int, []string) error, error) {
		return func(_ int, parts []string) error { return write(dir, path, parts[0]) }, os.WriteFile(path, []byte(parts[0]), 0o644)
	}
}

// pause is how long a writer stops half-way: less than what weir takes for the end of writing, and
// much more than a read takes.
const pause = 60 * time.Millisecond

var writers = []writer{
	{"in place", 1, whole(func(_, path, text string) error { return os.WriteFile(path, []byte(text), 0o644) })},
	{"in place, in two halves", 1, whole(func(_, path, text string) error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		// The first half is a configuration of its own, without the last instance.
		half := strings.LastIndex(text, "      - {name:")
		f.WriteString(text[:half])
		time.Sleep(pause)
		f.WriteString(text[half:])
		return f.Close()
	})},
	{"renamed over", 1, whole(func(dir, path, text string) error {
		next := filepath.Join(dir, "next")
		if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
			return err
		}
		return os.Rename(next, path)
	})},
	{"saved by an editor", 1, whole(func(dir, path, text string) error {
		// vim with backup: the old file moves away, the new one is written under its name.
		if err := os.Rename(path, path+"~"); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(text), 0o644)
	})},
	{"removed and made again", 1, whole(func(_, path, text string) error {
		if err := os.Remove(path); err != nil {
			return err
		}
		time.Sleep(pause)
		return os.WriteFile(path, []byte(text), 0o644)
	})},
	{"directories behind a symbolic link", 3, func(dir, path string, parts []string) (func(int, []string) error, error) {
		// As Kubernetes does: files are links through ..data, which is swapped.
		data := filepath.Join(path, "..data")
		generation := func(round int) string { return filepath.Join(path, fmt.Sprint("..", round)) }
		if err := writeParts(generation(-1), parts); err != nil {
			return nil, err
		}
		if err := os.Symlink(filepath.Base(generation(-1)), data); err != nil {
			return nil, err
		}
		for _, name := range partNames {
			if err := os.Symlink(filepath.Join("..data", name), filepath.Join(path, name)); err != nil {
				return nil, err
			}
		}
		return func(round int, parts []string) error {
			if err := writeParts(generation(round), parts); err != nil {
				return err
			}
			if err := os.Symlink(filepath.Base(generation(round)), data+"-next"); err != nil {
				return err
			}
			if err := os.Rename(data+"-next", data); err != nil {
				return err
			}
			return os.RemoveAll(generation(round - 1))
		}, nil
	}},
	{"a directory of files, one after the other", 3, func(dir, path string, parts []string) (func(int, []string) error, error) {
		if err := writeParts(path, parts); err != nil {
			return nil, err
		}
		return func(_ int, parts []string) error {
			for i, p := range parts {
				name := filepath.Join(path, partNames[i])
				if err := os.WriteFile(name+".next", []byte(p), 0o644); err != nil {
					return err
				}
				if err := os.Rename(name+".next", name); err != nil {
					return err
				}
				time.Sleep(pause / 2)
			}
			return nil
		}, nil
	}},
}

// settleTime is how long a configuration has to stay the same until it is read.
const settleTime = 200 * time.Millisecond

// liveLimit is within which time of the end of writing a change is in force.
const liveLimit = 2 * time.Second

// hotConfig is a configuration of as many parts as asked for. Its round is in two places, far
// apart: with several parts, in two files. Nobody uses what changes.
func hotConfig(t *testing.T, round, parts int) []string {
	t.Helper()
	first := replace(t, baseConfig, "routes:\n", fmt.Sprintf("routes:\n      - {to: 100.64.%d.0/24, drop: true}\n", round))
	last := fmt.Sprintf("{name: late, addresses: [172.30.0.9], external: {floating: [192.0.2.%d]}}\n", 100+round)
	if parts == 1 {
		return []string{first + "      - {name: early, addresses: [172.30.0.8]}\n      - " + last}
	}
	return []string{
		first,
		"version: 1\ninstances:\n  - {vpc: blue, name: early, addresses: [172.30.0.8]}\n",
		"version: 1\ninstances:\n  - " + strings.Replace(last, "{", "{vpc: blue, ", 1),
	}
}

// However a configuration is written, it is in force soon after, and nothing between the old one
// and the new one ever is: each round is one generation. The ways run side by side, each with a
// gateway of its own, under traffic.
func TestHotWriting(t *testing.T) {
	const rounds = 50
	for _, how := range writers {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			serveEcho(t, n.internet, remote4)
			w := newWeir(t, n, baseConfig)
			w.config = filepath.Join(w.dir, "etc", "weir.yaml")
			dir := filepath.Dir(w.config)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if how.files > 1 {
				w.config = dir
			}
			write, err := how.prepare(dir, w.config, hotConfig(t, 0, how.files))
			if err != nil {
				t.Fatal(err)
			}
			w.run(t)
			w.ready(t)
			s := startFlowing(t, n.guest, batch4, remote4)

			var slowest time.Duration
			slow := 0 // rounds that a busy machine took so long to write that two generations may be right
			for round := 1; round <= rounds; round++ {
				begin := time.Now()
				if err := write(round, hotConfig(t, round, how.files)); err != nil {
					t.Fatal(err)
				}
				written := time.Now()
				if how.files > 1 && written.Sub(begin) > settleTime {
					slow++
				}
				eventually(t, patience, fmt.Sprintf("round %d is in force", round), func() error {
					log := w.log()
					reloads, changes := strings.Count(log, "msg=reloaded "), strings.Count(log, "msg=changed ")
					if reloads < round || changes < 3*round {
						return fmt.Errorf("%d reloads, %d changes", reloads, changes)
					}
					return nil
				})
				slowest = max(slowest, time.Since(written))
			}
			if slowest > liveLimit {
				t.Errorf("a change was in force %v after it was written, expected %v at the most", slowest, liveLimit)
			}
			w.expectGeneration(t, float64(expectRounds(t, w.log(), rounds, slow)), true)
			if at := strings.Index(w.log(), "reload refused"); at >= 0 {
				t.Errorf("something half-written was taken for a configuration: %.200s", w.log()[at:])
			}
			s.endWhole(t)
			t.Logf("%d rounds, the slowest in force after %v", rounds, slowest.Round(time.Millisecond))
			w.expectBalance(t)
			w.expectTables(t)
			w.stop(t)
		})
	}
}

// expectRounds fails the test if a generation was anything but the change from one round to the
// next: one route removed, one added, one instance changed. Each slow round may be two generations,
// which divide that. It returns the number of the last one.
func expectRounds(t *testing.T, log string, rounds, slow int) int {
	t.Helper()
	var changes []string
	generation, all, parts := 1, 0, 0
	for line := range strings.Lines(log) {
		if _, what, ok := strings.Cut(line, "msg=changed "); ok {
			changes = append(changes, strings.TrimSpace(what))
		}
		if strings.Contains(line, "msg=reloaded ") {
			generation++
			all += len(changes)
			if len(changes) != 3 {
				if parts++; parts > 2*slow {
					t.Errorf("generation %d changes %d things, expected a route removed, one added, and an instance changed: %q", generation, len(changes), changes)
				}
			}
			changes = nil
		}
	}
	if all != 3*rounds || generation < 1+rounds || generation > 1+rounds+slow {
		t.Errorf("%d generations with %d changes, expected %d with %d, and at most %d generations more", generation, all, 1+rounds, 3*rounds, slow)
	}
	return generation
}
