// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/inet"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// slotOf returns the slot of an instance of the first VPC in the compiler's last generation.
func (r *rig) slotOf(name string) uint32 {
	slot, ok := r.slots()["v/"+name]
	if !ok {
		r.t.Fatalf("no instance %s", name)
	}
	return slot
}

// An instance keeps its slot over generations under whatever name, also when it was gone for a
// while and others came.
func TestSlotsStay(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	before := map[string]uint32{}
	for _, name := range []string{"one", "shared", "several"} {
		before[name] = r.slotOf(name)
	}
	renamed := strings.Replace(rigConfig, "name: several", "name: another", 1)
	renamed = strings.Replace(renamed, "instances:\n", "instances:\n      - {name: aaa, addresses: [10.0.0.66]}\n", 1)
	r.reload(renamed)
	if r.slotOf("another") != before["several"] {
		t.Error("what has another name has another slot too")
	}
	moved := strings.Replace(rigConfig, "10.0.0.7,", "10.0.0.107,", 1)
	if moved == rigConfig {
		t.Fatal("nobody has 10.0.0.7")
	}
	r.reload(moved)
	for _, slot := range before {
		if r.compiler.Instances.Known[generation.InstanceID{VPC: r.compiler.VPCs.Current["v"], Addr: netip.MustParseAddr("10.0.0.107")}] == slot {
			t.Error("a new address has the slot of one that is just gone")
		}
	}
	r.reload(rigConfig)
	for name, slot := range before {
		if r.slotOf(name) != slot {
			t.Errorf("%s has slot %d, had %d", name, r.slotOf(name), slot)
		}
	}
}

// A VPC whose name is new goes on with the slot of one that is gone and had its attachments.
// Discarded, the renaming leaves nothing; a name that is gone for good has its number again when it
// comes back, beside the one that took its place.
func TestRenamedVPC(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	slot, instance := r.compiler.VPCs.Current["v"], r.slotOf("one")
	renamed := strings.Replace(rigConfig, "name: v\n", "name: w\n", 1)
	if renamed == rigConfig {
		t.Fatal("no VPC of this name")
	}
	g, err := r.compiler.Compile(parseConfig(t, renamed))
	if err != nil {
		t.Fatal(err)
	}
	r.compiler.Discard()
	g.Close()
	if got := r.compiler.VPCs; got.Current["v"] != slot || got.Known["v"] != slot || got.Known["w"] != 0 {
		t.Errorf("after Discard: %v, known %v", got.Current, got.Known)
	}
	r.reload(renamed)
	if r.compiler.VPCs.Current["w"] != slot || r.slots()["w/one"] != instance {
		t.Errorf("VPC %v, instances %v; want slots %d and %d", r.compiler.VPCs.Current, r.slots(), slot, instance)
	}
	// Whoever takes over knows the attachments too.
	resumed := generation.Resume(r.state, r.gen)
	if err := resumed.Settle(r.cfg); err != nil {
		t.Fatal(err)
	}
	back, err := resumed.Compile(parseConfig(t, rigConfig))
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if got := resumed.VPCs.Current["v"]; got != slot {
		t.Errorf("renamed after a take-over: slot %d, want %d", got, slot)
	}
	resumed.Discard()
	// Without attachments nothing says that they are one.
	nowhere := strings.Replace(strings.Replace(renamed, "name: w\n", "name: x\n", 1), "    attach:", "    attach: []\n    #", 1)
	r.reload(nowhere)
	if got := r.compiler.VPCs.Current["x"]; got == slot {
		t.Error("a VPC without attachments has the slot of another")
	}
}

// slots returns the slots of the instances by "VPC/instance".
func (r *rig) slots() map[string]uint32 {
	m := map[string]uint32{}
	for slot, name := range r.gen.InstanceNames(r.cfg) {
		m[name] = slot
	}
	return m
}

// Neighbors that no generation names any more go when the old one is retired, and not before.
func TestRetire(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	old := r.state.Neighbors.Find(0, inside4(7))
	if old == state.NoNeighbor {
		t.Fatal("no neighbor entry of an instance")
	}
	used := r.state.Neighbors.Used
	cfg := parseConfig(t, strings.Replace(rigConfig, "10.0.0.7,", "10.0.0.107,", 1))
	g, err := r.compiler.Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	anySource(g)
	defer g.Close()
	if r.state.Neighbors.Find(0, inside4(7)) != old {
		t.Error("gone while workers may be at the old generation")
	}
	r.compiler.Retire()
	if r.state.Neighbors.Find(0, inside4(7)) != state.NoNeighbor || r.state.Neighbors.Find(0, inside4(107)) == state.NoNeighbor {
		t.Error("after Retire the old entry is there, or the new one is not")
	}
	if r.state.Neighbors.Used != used {
		t.Errorf("%d entries, want %d", r.state.Neighbors.Used, used)
	}
	r.compiler.Retire() // once more does nothing
	if r.state.Neighbors.Used != used {
		t.Error("a second Retire removed something")
	}
}

// A compilation that fails half-way leaves neighbors, slots and numbers as they were.
func TestFailedCompile(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	r.resolve(0, inside4(77))
	r.compiler.Instances.Capacity = int(r.compiler.Instances.Next) + 2 // room for two more
	entries := append([]state.Neighbor(nil), r.state.Neighbors.Live()...)
	used, number := r.state.Neighbors.Used, r.compiler.Number
	var more strings.Builder
	more.WriteString("instances:\n")
	for i := range 5 {
		fmt.Fprintf(&more, "      - {name: more%d, addresses: [10.0.2.%d, \"fd00::2:%d\"]}\n", i, 1+i, 1+i)
	}
	text := strings.Replace(rigConfig, "instances:\n", more.String(), 1)
	text = strings.Replace(text, "mac: \"02:00:00:00:01:05\", ", "", 1)                              // static before, to be resolved after
	text = strings.Replace(text, "02:00:00:00:02:01", "02:00:00:00:02:99", -1)                       // another static MAC
	text = strings.Replace(text, "more0, addresses: [10.0.2.1,", "more0, addresses: [10.0.0.77,", 1) // learned before
	if _, err := r.compiler.Compile(parseConfig(t, text)); err == nil || !strings.Contains(err.Error(), "places for instances are not enough") {
		t.Fatalf("error %v, want one about slots of instances", err)
	}
	if r.compiler.Number != number || r.state.Neighbors.Used != used {
		t.Errorf("generation %d, %d neighbors; were %d, %d", r.compiler.Number, r.state.Neighbors.Used, number, used)
	}
	for i := range entries {
		if got, was := &r.state.Neighbors.Live()[i], &entries[i]; got.Word != was.Word {
			t.Errorf("neighbor %v has word %x, had %x", got.Addr.Netip(), got.Word, was.Word)
		}
	}
	// What compiled before compiles, and a smaller change too.
	r.reload(rigConfig)
	r.reload(strings.Replace(rigConfig, "instances:\n", "instances:\n      - {name: last, addresses: [10.0.0.66]}\n", 1))
	r.expect(0, "udp 10.0.0.5:1 > 8.8.8.8:2", "udp 192.0.2.5:1 > 8.8.8.8:2")
}

// A mapped copy of a generation is the same generation.
func TestAttach(t *testing.T) {
	a := newRig(t, rigConfig, config.MAC{})
	fd, err := unix.Dup(a.gens[0].FD())
	if err != nil {
		t.Fatal(err)
	}
	var g generation.Generation
	if err := g.Attach(fd); err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	a.SetGeneration(&g)
	a.expect(0, "udp 10.0.0.5:1 > 8.8.8.8:2", "udp 192.0.2.5:1 > 8.8.8.8:2")
}

// After the data plane died at any place, Sweep makes counters, limits, lists, rings and tables
// agree with the sessions.
func TestSweep(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(r *rig)
		lost   int // sessions
	}{
		{"at rest", func(r *rig) {}, 0},
		{"packets in hand", func(r *rig) { r.counters.Received[0] += 32; r.counters.Held = 3 }, 0},
		{"a session between its count and its list", func(r *rig) {
			r.state.Acquire(1, 1)
			r.state.Instances[1].Unconfirmed++
		}, 0},
		{"limits of nobody", func(r *rig) {
			for i := range 100 {
				r.state.VPCs[i].Sessions = 0xdead
				r.state.Instances[i] = state.Usage{Sessions: 0xdead, Unconfirmed: 0xbeef}
				r.unconfirmed[i] = state.UnconfirmedList{Oldest: 7, Newest: 9, N: 3}
			}
		}, 0},
		{"lists full of garbage", func(r *rig) {
			for ref := range uint32(r.Capacity()) {
				r.sessions.At(ref).Prev, r.sessions.At(ref).Next = ref*7, ref*13
			}
		}, 0},
		{"a session of no instance", func(r *rig) { r.only5().Instance = 1 << 31 }, 1},
		{"a session of no VPC", func(r *rig) { r.only5().VPC = 1 << 31 }, 1},
		{"rings half written", func(r *rig) {
			for range 5 {
				r.punts.Put(state.PuntFrame, 0, drop.Pass, 0, inet.Addr{}, []byte{1})
			}
			// The first word of a ring is its head; its tail is on the next cache line.
			punts, inject := r.punts, r.state.Inject(0)
			(*(**[9]uint64)(unsafe.Pointer(&punts)))[0] += 100
			(*(**[9]uint64)(unsafe.Pointer(&inject)))[8] = 99
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, unconfirmedConfig, config.MAC{})
			for range 3 {
				r.unconfirm(1)
				r.after(time.Millisecond)
			}
			for i := range 5 {
				r.send(0, fmt.Sprintf("udp 10.0.0.5:%d > 8.8.8.8:53", 1000+i))
				r.send(0, fmt.Sprintf("tcp 10.0.0.6:%d > 8.8.8.8:53 SYN", 1000+i))
			}
			c.damage(r)
			Sweep(r.state, r.gen, r.nanos)
			if err := r.sessions.Check(); err != nil {
				t.Error(err)
			}
			tot := r.counters.Totals()
			if tot.Received != tot.Forwarded+tot.Punted+tot.Dropped || tot.Held != 0 {
				t.Errorf("counters do not add up: %+v", tot)
			}
			live, unconfirmed := 0, 0
			perInstance, perVPC := map[uint32]uint32{}, map[uint32]uint32{}
			for ref := range uint32(r.Capacity()) {
				if s := r.sessions.At(ref); s.State() != session.Free {
					live++
					perInstance[s.Instance]++
					perVPC[s.VPC]++
					if s.State() == session.Unconfirmed {
						unconfirmed++
					}
				}
			}
			if live != 13-c.lost || int(r.counters.Sessions) != live {
				t.Errorf("%d sessions, the counter says %d; want %d", live, r.counters.Sessions, 13-c.lost)
			}
			for i := range r.state.Room().Instances {
				u := &r.state.Instances[i]
				if u.Sessions != perInstance[uint32(i)] {
					t.Errorf("instance %d counts %d sessions, has %d", i, u.Sessions, perInstance[uint32(i)])
				}
				n, last := uint32(0), session.None
				for ref := r.unconfirmed[i].Oldest; ref != session.None; ref = r.sessions.At(ref).Next {
					if prev := r.sessions.At(ref).Prev; prev != last {
						t.Errorf("session %d is behind %d in its list, and says %d", ref, last, prev)
					}
					if last != session.None && r.sessions.At(last).Created >= r.sessions.At(ref).Created {
						t.Errorf("session %d is in its list before the older one %d", last, ref)
					}
					last = ref
					n++
					unconfirmed--
				}
				if n != u.Unconfirmed || last != r.unconfirmed[i].Newest {
					t.Errorf("instance %d counts %d unconfirmed sessions, its list has %d", i, u.Unconfirmed, n)
				}
			}
			if unconfirmed != 0 {
				t.Errorf("%d unconfirmed sessions are in no list", unconfirmed)
			}
			for i := range r.state.Room().VPCs {
				if got := r.state.VPCs[i].Sessions; got != perVPC[uint32(i)] {
					t.Errorf("VPC %d counts %d sessions, has %d", i, got, perVPC[uint32(i)])
				}
			}
			if r.punts.Peek() != nil || r.state.Inject(0).Peek() != nil {
				t.Error("a ring is not empty")
			}
			// And it goes on.
			w := NewWorker(r.state, 0, r.gens[0], WorkerConfig{MACs: []config.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}, Seed: &testSeed})
			w.SetClock(2e9)
			r.Worker = w
			r.expect(0, "udp 10.0.0.5:1000 > 8.8.8.8:53", "udp 192.0.2.5:1000 > 8.8.8.8:53")
			r.expect(0, "udp 10.0.0.5:2000 > 8.8.8.8:53", "udp 192.0.2.5:2000 > 8.8.8.8:53")
			r.after(24 * 60 * 60 * 1e9)
			if r.Expire(r.Capacity()); r.sessions.Len() != 0 {
				t.Errorf("%d sessions are left after a day", r.sessions.Len())
			}
		})
	}
}

// only5 returns the session of 10.0.0.5:1000.
func (r *rig) only5() *session.Session {
	for ref := range uint32(r.Capacity()) {
		if s := r.sessions.At(ref); s.State() == session.UDP && s.PrivatePort() == 1000 {
			return s
		}
	}
	r.t.Fatal("no such session")
	return nil
}
