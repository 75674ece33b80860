// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/appliance/link"
	"weir/config"
	"weir/pipeline/generation"
	"weir/pipeline/respond"
	"weir/pipeline/state"
)

// loopConfig is a small configuration.
const loopConfig = `version: 1
dataplane: {sessions: 1024}
ports:
  - {name: in, device: net_ring0, side: inside}
  - {name: out, device: net_ring1, side: outside, addresses: [198.51.100.2/24], next_hops: [198.51.100.1]}
vpcs:
  - {name: blue, attach: [{port: in, addresses: [172.30.0.1/24]}], subnets: [172.30.0.0/24]}
`

// newLoop returns a control whose loop can run, beside a data plane that says nothing.
func newLoop(t *testing.T) *control {
	t.Helper()
	c := newControl("")
	c.log = slog.New(slog.DiscardHandler)
	cfg, _, err := config.Parse([]config.File{{Name: "weir.yaml", Data: []byte(loopConfig)}})
	if err != nil {
		t.Fatal(err)
	}
	c.cfg = ownCopy(cfg)
	if c.state, err = state.New(state.Sizes{Workers: 1, Sessions: cfg.Dataplane.Sessions}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.state.Close() })
	c.compiler = generation.NewCompiler(c.state, nil)
	if c.gen, err = c.compiler.Compile(c.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.gen.Close() })
	c.respond = respond.New(c.state, make([]config.MAC, len(c.cfg.Ports)))
	c.respond.Configure(c.cfg, c.gen)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[1]) })
	c.plane = supervisor{log: c.log, conn: &link.Conn{FD: fds[0]}}
	t.Cleanup(c.plane.hangUp)
	return c
}

// While a file is read, however long that takes, control answers; and it ends when it is told to.
// Readings that are asked for meanwhile are one reading afterwards.
func TestLoadBesideLoop(t *testing.T) {
	c := newLoop(t)
	begun, finish := make(chan struct{}, 10), make(chan error)
	c.load = func(ctx context.Context) (*loaded, error) {
		begun <- struct{}{}
		return nil, <-finish
	}
	defer close(finish)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changed, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- c.loop(ctx, changed) }()

	answers := func(when string) {
		t.Helper()
		one, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := c.do(one, func(*control) {}); err != nil {
			t.Fatalf("%s control does not answer: %v", when, err)
		}
	}
	// send does not wait for a loop that reads.
	send := func(when string) {
		t.Helper()
		select {
		case changed <- struct{}{}:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s control hears of no change", when)
		}
	}
	send("at first")
	<-begun
	answers("during a reading")
	for range 3 {
		send("during a reading")
	}
	answers("during a reading")
	finish <- errors.New("refused")
	<-begun
	answers("during the second reading")
	finish <- errors.New("refused")
	send("after the second reading") // only now a third begins
	<-begun
	select {
	case <-begun:
		t.Error("two readings at a time")
	default:
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("control does not end during a reading")
	}
}
