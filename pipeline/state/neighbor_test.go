// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

type neighborKey struct {
	port attach.Word
	addr inet.Addr
}

func randomNeighbor(r *rand.Rand) neighborKey {
	a := inet.Addr{Lo: 0xffff_0a00_0000 + r.Uint64N(64)}
	if r.IntN(2) == 0 {
		a = inet.Addr{Hi: 0xfd00 << 48, Lo: r.Uint64N(64)}
	}
	return neighborKey{attach.Port(r.IntN(3)), a}
}

// The table agrees with a map over many additions, changes and removals, and an entry never moves.
func TestNeighborsAgreeWithMap(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	n := NewNeighbors(make([]Neighbor, 512), 512, 1, 7)
	type value struct {
		slot  uint32
		state NeighborState
		mac   config.MAC
	}
	golden := map[neighborKey]value{}
	for i := range 200_000 {
		k := randomNeighbor(r)
		was, known := golden[k]
		if r.IntN(3) == 0 {
			if known {
				n.Remove(was.slot)
				delete(golden, k)
			}
		} else {
			v := value{state: NeighborState(1 + r.IntN(3)), mac: config.MAC{2, byte(r.Uint32())}}
			var err error
			if v.slot, err = n.Set(k.port, k.addr, v.state, v.mac); err != nil {
				t.Fatalf("step %d, %d entries of 512: %v", i, len(golden), err)
			}
			if known && v.slot != was.slot {
				t.Fatalf("step %d: an entry moved from %d to %d", i, was.slot, v.slot)
			}
			golden[k] = v
		}
		k = randomNeighbor(r)
		slot := n.Find(k.port, k.addr)
		if v, known := golden[k]; !known {
			if slot != NoNeighbor {
				t.Fatalf("step %d: %+v is found and was removed", i, k)
			}
		} else if state, mac := n.Get(slot); slot != v.slot || state != v.state || mac != v.mac {
			t.Fatalf("step %d: %+v in slot %d is %v %v, want %+v", i, k, slot, state, mac, v)
		} else if port, addr := n.At(slot); port != k.port || addr != k.addr {
			t.Fatalf("step %d: slot %d says it is %d %v", i, slot, port, addr)
		}
		if n.Used != len(golden) {
			t.Fatalf("step %d: %d used, want %d", i, n.Used, len(golden))
		}
	}
}

func TestNeighborsFull(t *testing.T) {
	n := NewNeighbors(make([]Neighbor, 256), 256, 1, 0)
	made := 0
	for i := range 300 {
		if _, err := n.Set(0, inet.Addr{Lo: uint64(i)}, NeighborReachable, config.MAC{2}); err == nil {
			made++
		}
	}
	if made > 256 || made < 200 {
		t.Errorf("%d entries in a table of 256", made)
	}
	for i := range made / 2 {
		if slot := n.Find(0, inet.Addr{Lo: uint64(i)}); slot == NoNeighbor {
			t.Fatalf("entry %d is lost in a full table", i)
		}
	}
}

// A reader beside the writer always finds the entries that nobody touches. (The race detector says
// the rest.)
func TestNeighborsConcurrently(t *testing.T) {
	n := NewNeighbors(make([]Neighbor, 64), 64, 1, 3)
	fixed := neighborKey{2, inet.Addr{Hi: 1, Lo: 2}}
	if _, err := n.Set(fixed.port, fixed.addr, NeighborStatic, config.MAC{2}); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var writer sync.WaitGroup
	writer.Go(func() {
		r := rand.New(rand.NewPCG(6, 6))
		for !stop.Load() {
			k := neighborKey{0, inet.Addr{Hi: r.Uint64N(4), Lo: 1 + r.Uint64N(4)}}
			if slot := n.Find(k.port, k.addr); slot != NoNeighbor {
				n.Remove(slot)
			} else if _, err := n.Set(k.port, k.addr, NeighborReachable, config.MAC{2, 1}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	r := rand.New(rand.NewPCG(7, 7))
	for range 100_000 {
		if slot := n.Find(fixed.port, fixed.addr); slot == NoNeighbor {
			t.Error("an entry that nobody touches is lost")
			break
		}
		n.Find(0, inet.Addr{Hi: r.Uint64N(4), Lo: 1 + r.Uint64N(4)})
	}
	stop.Store(true)
	writer.Wait()
}

func newRing() Ring { return Ring{new(ring)} }

// The ring agrees with a slice.
func TestRingAgreesWithSlice(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	q := newRing()
	var golden []uint32
	next := uint32(0)
	fill := 0
	for range 200_000 {
		if r.IntN(1000) == 0 {
			fill = r.IntN(2) // now and then mostly full, mostly empty
		}
		if r.IntN(3) <= fill {
			ok := q.Put(PuntFrame, attach.Word(next), drop.Reason(next%7), uint16(next), inet.Addr{Lo: uint64(next)}, binary.BigEndian.AppendUint32(nil, next))
			if ok != (len(golden) < RingSlots) {
				t.Fatalf("Put with %d in it: %t", len(golden), ok)
			}
			if ok {
				golden = append(golden, next)
				next++
			}
			continue
		}
		m := q.Peek()
		if (m == nil) != (len(golden) == 0) {
			t.Fatalf("Peek with %d in it: %v", len(golden), m)
		}
		if m != nil {
			n := golden[0]
			golden = golden[1:]
			if m.Kind != PuntFrame || m.At != attach.Word(n) || m.Reason != drop.Reason(n%7) || m.MTU != uint16(n) || m.Addr.Lo != uint64(n) || string(m.Data()) != string(binary.BigEndian.AppendUint32(nil, n)) {
				t.Fatalf("message %d is %v %v %v", n, m.At, m.Addr, m.Data())
			}
			q.Pop()
		}
	}
	if next < 10_000 {
		t.Error("too few messages to say anything")
	}
	// A frame longer than a slot is cut.
	q.Reset()
	q.Put(PuntError, 0, drop.TooBig, 0, inet.Addr{}, make([]byte, 5000))
	if n := len(q.Peek().Data()); n != RingFrame {
		t.Errorf("a frame of 5000 bytes became %d, want %d", n, RingFrame)
	}
	// A length from a broken writer does no harm.
	q.Peek().Len = 0xffff
	if n := len(q.Peek().Data()); n != RingFrame {
		t.Errorf("a length of 65535 gives %d bytes, want %d", n, RingFrame)
	}
}

// A writer that claims more than there is room for does not keep its reader busy, and is read again
// when it writes again.
func TestRingOfABrokenWriter(t *testing.T) {
	for _, head := range []uint64{RingSlots + 1, 1 << 60, ^uint64(0)} {
		q := newRing()
		q.Put(PuntFrame, 0, drop.Pass, 0, inet.Addr{}, []byte{1})
		q.r.head = head
		if m := q.Peek(); m != nil {
			t.Errorf("head %d: there is a message", head)
		}
		if !q.Put(PuntFrame, 7, drop.Pass, 0, inet.Addr{}, []byte{2}) {
			t.Fatalf("head %d: the ring is full", head)
		}
		if m := q.Peek(); m == nil || m.At != 7 {
			t.Fatalf("head %d: %+v", head, m)
		}
		if q.Pop(); q.Peek() != nil {
			t.Errorf("head %d: there is another message", head)
		}
	}
}

func TestRingConcurrently(t *testing.T) {
	const n = 50_000
	q := newRing()
	var failed atomic.Bool
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := uint32(0); i < n && !failed.Load(); {
			if q.Put(PuntFrame, 0, drop.Pass, 0, inet.Addr{Lo: uint64(i)}, binary.BigEndian.AppendUint32(nil, i)) {
				i++
			}
		}
	})
	for i := uint32(0); i < n; {
		m := q.Peek()
		if m == nil {
			continue
		}
		if m.Addr.Lo != uint64(i) || string(m.Data()) != string(binary.BigEndian.AppendUint32(nil, i)) {
			t.Errorf("message %d is %v % x", i, m.Addr, m.Data())
			failed.Store(true)
			break
		}
		q.Pop()
		i++
	}
	writer.Wait()
	if !failed.Load() && q.Peek() != nil {
		t.Error("more came out than was put in")
	}
}

// Processes of different versions share memory when its layout is the same. What numbers in it mean
// is no part of the types, and not all of it: where this fails, memory.meaning has to change with
// what is written here.
func TestMeaningOfSharedMemory(t *testing.T) {
	const flags = session.SNAT | session.FromOutside<<1 | session.Hairpin<<2 | session.Asked<<3 | session.OnLink<<4
	word := session.Word(1, 2, 3, 4, session.Unconfirmed)
	got := fmt.Sprintf("%012x %x %x %d", MACWord(config.MAC{1, 2, 3, 4, 5, 6}), flags, word, NeighborStatic)
	if want := "060504030201 a805 704000300020001 3"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// This one had MACs the other way round, and sessions that did not say whether their remote
	// address is on the link.
	if stateLayout == 0x526b7af9071e2391 {
		t.Errorf("the state has the layout hash %x of one with another meaning", stateLayout)
	}
}

// After a million comings and goings a miss still ends soon: places at the end of a run are given
// back. An emptied table is as if new.
func TestNeighborsGiveRoomBack(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	n := NewNeighbors(make([]Neighbor, 4096), 4096, 1, 7)
	var live []uint32
	for range 1_000_000 {
		slot, err := n.Set(attach.Port(r.IntN(3)), inet.Addr{Hi: r.Uint64(), Lo: r.Uint64()}, NeighborReachable, config.MAC{2})
		if err != nil {
			t.Fatal(err)
		}
		if live = append(live, slot); len(live) > 1024 { // a quarter of the table
			i := r.IntN(len(live))
			n.Remove(live[i])
			live[i] = live[len(live)-1]
			live = live[:len(live)-1]
		}
	}
	const misses = 10_000
	walked := 0
	for range misses {
		at := n.start(0, inet.Addr{Hi: r.Uint64(), Lo: r.Uint64()})
		for i := uint32(0); i < maxNeighborProbe && n.Entries[(at+i)&4095].Link != 0; i++ {
			walked++
		}
	}
	// 0.39 places that are taken (Knuth's (1 + 1/(1-1/4)²)/2 - 1), and the empty ones inside their
	// runs.
	if mean := float64(walked) / misses; mean > 6 {
		t.Errorf("a miss walks over %.2f places, want fewer than 6", mean)
	}
	for _, slot := range live {
		n.Remove(slot)
	}
	for i := range n.Entries {
		if n.Entries[i].Link != 0 {
			t.Fatalf("place %d of an empty table still counts as taken", i)
		}
	}
}
