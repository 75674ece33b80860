// SPDX-License-Identifier: Apache-2.0

// Package casetest reads and runs the case folders of pipeline/testdata/cases. A case is a
// configuration, packets in, and everything that has to happen to them. Its source is written by
// hand:
//
//	weir.yaml        the configuration, and further ones for reloads
//	case.txt         the packets and what becomes of each
//
// The rest is made from those by `go test ./pipeline -run Cases -update`, for weir replay and for
// reviewers:
//
//	in/PORT.pcap     what each port receives
//	out/PORT.pcap    what each port sends
//	counters.json    the counters at the end, as weir replay --json prints them
//	listing.txt      all packets in their order, with Ethernet addresses and times
//
// case.txt begins with a comment that names the case. Then come steps, each with what follows from
// it indented below:
//
//	[+SECONDS] PORT < PACKET
//	    PORT > PACKET        a frame that leaves, in this order
//	    dropped REASON       the packet is dropped
//	    punted               the packet goes to control
//	    held                 the packet waits for the first fragment of its datagram
//	    sessions N           so many sessions live afterwards; not said, they are not looked at
//	[+SECONDS] reload FILE   another configuration
//
// Frames, drops and punts that are not said must not happen. SECONDS are since the first frame;
// without them a step is a millisecond behind the one before it. PACKET is a line of package
// packettext whose Ethernet addresses may be left out: in a step they are a neighbor's and the
// port's, in a frame that leaves they are not looked at. {NAME} in a frame that leaves stands for a
// number that is not known beforehand, such as an SNAT port; from there on it stands for that
// number. Different names have different numbers. The identification of an IPv4 frame that leaves
// is looked at where the line has ipid= or frag=: SNAT chooses it anew.
package casetest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/config"
)

// Case is a case folder, read.
type Case struct {
	Dir     string
	Config  *config.Config // weir.yaml
	Reloads []Reload       // in their order
	steps   []step
	twin    *Twin // nil: as written
}

// Reload is a change of the configuration.
type Reload struct {
	At   time.Duration // since the first frame
	File string        // in the case's folder
}

// step is one frame or reload and what has to follow.
type step struct {
	line   int // in case.txt
	at     time.Duration
	port   int    // of the frame
	packet string // as written
	reload string // file; empty: a frame

	out      []frame
	dropped  []string // reasons
	punted   int
	held     bool
	sessions int // -1: not said
}

// frame is one that has to leave.
type frame struct {
	port   int
	packet string
}

// tick is between two steps that say no time.
const tick = time.Millisecond

// Dirs returns all case folders below root, which must have some.
func Dirs(tb testing.TB, root string) []string {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(root, "*", "case.txt"))
	if err != nil || len(files) == 0 {
		tb.Fatalf("%s: no case folders (%v)", root, err)
	}
	dirs := make([]string, len(files))
	for i, f := range files {
		dirs[i] = filepath.Dir(f)
	}
	return dirs
}

// Load reads the case in dir.
func Load(tb testing.TB, dir string) *Case {
	tb.Helper()
	cfg, _, err := config.Load(filepath.Join(dir, "weir.yaml"))
	if err != nil {
		tb.Fatal(err)
	}
	for _, p := range cfg.Ports {
		if p.MAC == (config.MAC{}) {
			tb.Fatalf("%s: port %q has no mac; expected one, so that every device shows the same", dir, p.Name)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "case.txt"))
	if err != nil {
		tb.Fatal(err)
	}
	c := &Case{Dir: dir, Config: cfg}
	for i, line := range strings.Split(string(text), "\n") {
		if err := c.read(i+1, line); err != nil {
			tb.Fatalf("%s/case.txt:%d: %q: %v", dir, i+1, line, err)
		}
	}
	return c
}

// read takes one line of case.txt.
func (c *Case) read(number int, line string) error {
	text := strings.TrimSpace(line)
	comment := strings.HasPrefix(text, "#")
	switch {
	case number == 1 && (!comment || len(text) < 3):
		return fmt.Errorf("expected a comment with the case's name")
	case text == "" || comment:
		return nil
	case line[0] == ' ':
		if len(c.steps) == 0 {
			return fmt.Errorf("expected a step first")
		}
		return c.readResult(&c.steps[len(c.steps)-1], text)
	}
	return c.readStep(number, text)
}

func (c *Case) readStep(number int, text string) error {
	s := step{line: number, sessions: -1}
	var last time.Duration
	if n := len(c.steps); n > 0 {
		last = c.steps[n-1].at
		s.at = last + tick
	}
	if seconds, rest, ok := strings.Cut(text, " "); ok && seconds[0] == '+' {
		at, err := time.ParseDuration(seconds[1:] + "s")
		if err != nil || at%tick != 0 || len(c.steps) > 0 && at <= last {
			return fmt.Errorf("expected a time in whole milliseconds after %v", last)
		}
		s.at, text = at, strings.TrimSpace(rest)
	}
	if file, ok := strings.CutPrefix(text, "reload "); ok {
		s.reload = file
		c.Reloads = append(c.Reloads, Reload{s.at, file})
	} else {
		var err error
		if s.port, s.packet, err = c.split(text, " < "); err != nil {
			return err
		}
	}
	if len(c.steps) == 0 && (s.reload != "" || s.at != 0) {
		return fmt.Errorf("expected a frame at +0 first")
	}
	c.steps = append(c.steps, s)
	return nil
}

// readResult reads a line below a step.
func (c *Case) readResult(s *step, text string) error {
	if reason, ok := strings.CutPrefix(text, "dropped "); ok {
		s.dropped = append(s.dropped, reason)
		return nil
	}
	if text == "punted" {
		s.punted++
		return nil
	}
	if text == "held" {
		s.held = true
		return nil
	}
	if n, ok := strings.CutPrefix(text, "sessions "); ok {
		_, err := fmt.Sscanf(n, "%d", &s.sessions)
		return err
	}
	port, packet, err := c.split(text, " > ")
	s.out = append(s.out, frame{port, packet})
	return err
}

// split cuts PORT < PACKET.
func (c *Case) split(text, sign string) (port int, packet string, err error) {
	name, packet, _ := strings.Cut(text, sign)
	port = slices.IndexFunc(c.Config.Ports, func(p config.Port) bool { return p.Name == name })
	if port < 0 || packet == "" {
		return 0, "", fmt.Errorf("expected PORT%sPACKET, dropped, punted, held, sessions or reload", sign)
	}
	return port, packet, nil
}
