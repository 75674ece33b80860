// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/config"
	"weir/pipeline/generation"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// growingConfig has so many instances, with a share each of one of so many SNAT addresses.
func growingConfig(instances, addresses int) string {
	var b strings.Builder
	b.WriteString(`version: 1
dataplane: {sessions: 4096}
ports:
  - {name: in, side: inside, device: net_null0}
  - {name: out, side: outside, device: net_null1, addresses: [198.51.100.2/24], next_hops: [198.51.100.1]}
pools: [{name: p, ranges: [45.154.0.0/16]}]
gateways: [{name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}]
vpcs:
  - name: v
    attach: [{port: in, addresses: [10.0.0.1/16]}]
    subnets: [10.0.0.0/16]
    routes: [{to: 0.0.0.0/0, gateway: g}]
    instances:
`)
	for i := range instances {
		fmt.Fprintf(&b, "      - {name: i%d, addresses: [%s], external: {snat: [{address: 45.154.%d.%d, ports: %d-%d}]}}\n",
			i, growingAddress(i), i%addresses>>8, i%addresses&255, 2048+i/addresses*1000, 2048+i/addresses*1000+999)
	}
	return b.String()
}

func growingAddress(i int) string { return fmt.Sprintf("10.0.%d.%d", (i+16)>>8, (i+16)&255) }

// attached maps a state once more, as another process does.
func attached(t *testing.T, s *state.State) *state.State {
	t.Helper()
	var fds [2]int
	for i, fd := range []int{s.Segment.FD(), s.GrowingFD()} {
		var err error
		if fds[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	}
	d, err := state.Attach(fds[0], fds[1])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// A gateway that began with five instances grows to 20,000 with 6,000 SNAT addresses while a
// worker, in another mapping, forwards; its sessions stay, and those of the new instances come. Who
// maps the state later finds all of it. A small one takes little memory.
func TestGrows(t *testing.T) {
	r := newRig(t, growingConfig(5, 2), refNeighbor)
	begun := r.state.Taken() - r.state.Segment.Size()
	t.Logf("what grows takes %d KiB at the beginning", begun>>10)
	if begun > 2<<20 {
		t.Errorf("what grows takes %d KiB for five instances, expected 2,048 at the most", begun>>10)
	}
	plane := attached(t, r.state)
	newWorker := func(s *state.State) *rig {
		w := NewWorker(s, 0, r.gen, WorkerConfig{MACs: []config.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}, AssumeMAC: refNeighbor, Seed: &testSeed})
		w.SetClock(r.nanos)
		return &rig{Worker: w, t: t, state: s, cfg: r.cfg, compiler: r.compiler}
	}
	w := newWorker(plane)
	line := func(i, remote int) string { return fmt.Sprintf("udp %s:4000 > 8.8.8.%d:53", growingAddress(i), remote) }
	before := map[int]string{}
	for i := range 5 {
		before[i] = w.send(0, line(i, 1))
		if !strings.Contains(before[i], " > ") {
			t.Fatalf("instance %d: %s", i, before[i])
		}
	}
	text := growingConfig(20_000, 6_000)
	cfg := parseConfig(t, text)
	g, err := r.compiler.Follow(r.gen, r.cfg, cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.gens = append(r.gens, g)
	// Until it is published nothing is another for the worker; and the one that does not know of it
	// yet reads what it has.
	for i := range 5 {
		w.expect(0, line(i, 2), strings.Replace(before[i], "8.8.8.1", "8.8.8.2", 1))
	}
	if err := plane.Populate(); err != nil {
		t.Fatal(err)
	}
	w.SetGeneration(g)
	r.compiler.Retire()
	r.gen, r.cfg = g, cfg
	moved := 0
	for i := range 5 {
		if got := w.send(0, line(i, 1)); got != before[i] {
			moved++ // its share is on another address now
		}
	}
	if moved != 3 {
		t.Errorf("%d instances have lost their port, expected those three whose share moved", moved)
	}
	last := ""
	for i := 0; i < 20_000; i += 97 {
		if last = w.send(0, line(i, 3)); !strings.Contains(last, fmt.Sprintf("udp 45.154.%d.%d:", i%6000>>8, i%6000&255)) {
			t.Fatalf("instance %d: %s", i, last)
		}
	}
	if err := r.state.Check(); err != nil {
		t.Error(err)
	}
	t.Logf("grown it takes %d MiB", (r.state.Taken()-r.state.Segment.Size())>>20)

	// The data plane dies, and another one maps what there is; control too.
	sessions := r.state.Table(0).Len()
	third := attached(t, r.state)
	Sweep(third, g, r.nanos)
	if err := third.Check(); err != nil {
		t.Error(err)
	}
	if got := third.Table(0).Len(); got != sessions-moved {
		t.Errorf("%d sessions after the sweep, expected %d but the %d whose share moved", got, sessions, moved)
	}
	w = newWorker(third)
	w.expect(0, line(19_982, 3), last)
	control := attached(t, r.state)
	resumed := generation.Resume(control, g)
	if err := resumed.Settle(cfg); err != nil {
		t.Fatal(err)
	}
	if got, want := control.Room(), r.state.Room(); got != want {
		t.Errorf("the one that takes over has room %v, expected %v", got, want)
	}
	if len(resumed.Instances.Current) != 20_000 || len(resumed.Addresses.Current) != 6_000 {
		t.Errorf("it knows %d instances and %d addresses", len(resumed.Instances.Current), len(resumed.Addresses.Current))
	}
	// Less again, and all of it once more: nothing grows any further.
	taken := r.state.Taken()
	for _, text := range []string{growingConfig(5, 2), text} {
		next := parseConfig(t, text)
		g, err := resumed.Compile(next)
		if err != nil {
			t.Fatal(err)
		}
		r.gens = append(r.gens, g)
		resumed.Retire()
	}
	if r.state.Taken() != taken {
		t.Errorf("%d bytes are taken, were %d", r.state.Taken(), taken)
	}
}

// Without memory a larger configuration is refused, nothing has changed, nothing is owed: a small
// change goes through while the memory still lacks, and the large one when it is there.
func TestGrowsNot(t *testing.T) {
	r := newRig(t, growingConfig(5, 2), refNeighbor)
	first := r.send(0, "udp 10.0.0.16:4000 > 8.8.8.8:53")
	kept, err := unix.FcntlInt(uintptr(r.state.GrowingFD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kept)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	was, taken := r.state.Room(), r.state.Taken()
	if err := unix.Dup3(int(null.Fd()), r.state.GrowingFD(), unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	large := parseConfig(t, growingConfig(2_000, 500))
	for _, compile := range []func() (*generation.Generation, error){
		func() (*generation.Generation, error) { return r.compiler.Compile(large) },
		func() (*generation.Generation, error) { return r.compiler.Follow(r.gen, r.cfg, large) },
	} {
		instances, next, number := len(r.compiler.Instances.Known), r.compiler.Instances.Next, r.compiler.Number
		_, err := compile()
		if err == nil || !strings.Contains(err.Error(), "the state cannot grow to 512 VPCs, 2048 instances, 512 SNAT addresses and 16384 neighbors: no memory for") {
			t.Fatalf("%v", err)
		}
		if r.state.Room() != was || len(r.compiler.Instances.Known) != instances || r.compiler.Instances.Next != next || r.compiler.Number != number {
			t.Errorf("room %v, %d instances known, next %d, generation %d", r.state.Room(), len(r.compiler.Instances.Known), r.compiler.Instances.Next, r.compiler.Number)
		}
	}
	r.reload(growingConfig(6, 2))
	r.expect(0, "udp 10.0.0.16:4000 > 8.8.8.8:53", first)
	if err := unix.Dup3(kept, r.state.GrowingFD(), unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if r.state.Taken() != taken {
		t.Errorf("%d bytes are taken, were %d", r.state.Taken(), taken)
	}
	r.reload(growingConfig(2_000, 500))
	if r.sessions.Len() != 1 || r.sessions.At(0).State() == session.Free {
		t.Errorf("%d sessions", r.sessions.Len())
	}
	if got := r.send(0, "udp "+growingAddress(1_999)+":4000 > 8.8.8.8:53"); !strings.Contains(got, "45.154.1.243:") {
		t.Error(got)
	}
	if err := r.state.Check(); err != nil {
		t.Error(err)
	}
}
