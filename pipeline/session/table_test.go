// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/rand/v2"
	"testing"

	"weir/pipeline/inet"
	"weir/pipeline/memory"
)

// newTable makes a table in a segment of its own.
func newTable(t testing.TB, capacity int, secret Secret) *Table {
	t.Helper()
	var l memory.Layout
	r := Reserve(&l, capacity)
	s, err := memory.New("table", l.Size(), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	table := Open(s, r)
	table.Init(secret)
	table.Fill()
	return table
}

func randomSecret(r *rand.Rand) (s Secret) {
	for i := range s {
		s[i] = r.Uint64()
	}
	return s
}

// flow is the slow, obvious form of a session.
type flow struct {
	vpc                       uint32
	private, remote, external inet.Addr
	pp, rp, ep                uint16
	proto                     uint8
}

func (f flow) inside() Key  { return InsideKey(f.vpc, f.private, f.remote, f.pp, f.rp, f.proto) }
func (f flow) outside() Key { return OutsideKey(f.external, f.remote, f.ep, f.rp, f.proto) }

func add(table *Table, f flow) (uint32, bool) {
	ref, s, ok := table.Alloc()
	if !ok {
		return None, false
	}
	*s = Session{Private: f.private, Remote: f.remote, External: f.external, VPC: f.vpc}
	return ref, table.Publish(ref, s, Word(f.pp, f.rp, f.ep, f.proto, UDP))
}

// smallFlow draws from so few values that keys that differ in one part only are common.
func smallFlow(r *rand.Rand) flow {
	a := func() inet.Addr {
		if r.IntN(2) == 0 {
			return inet.Addr{Lo: 0xffff_0a00_0000 + r.Uint64N(4)}
		}
		return inet.Addr{Hi: 0x2001_0db8 << 32, Lo: r.Uint64N(4)}
	}
	p := func() uint16 { return uint16(r.UintN(3)) }
	return flow{1 + r.Uint32N(2), a(), a(), a(), p(), p(), p(), uint8(6 + 11*r.UintN(2))}
}

// The table agrees with two maps over many random additions, removals, look-ups and rebuilds.
func TestAgreesWithMaps(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const capacity = 300 // small: full at times, and with overflow buckets
	table := newTable(t, capacity, randomSecret(r))
	inside, outside, live := map[Key]uint32{}, map[Key]uint32{}, map[uint32]flow{}
	find := func(m map[Key]uint32, k Key) uint32 {
		if ref, ok := m[k]; ok {
			return ref
		}
		return None
	}
	var b Batch
	rounds := 200_000
	if testing.Short() {
		rounds = 20_000
	}
	for i := range rounds {
		switch f := smallFlow(r); {
		case r.IntN(rounds/10) == 0:
			table.Rebuild(func(ref uint32, s *Session) bool {
				if _, ok := live[ref]; !ok {
					t.Fatalf("session %d is live and was never added", ref)
				}
				return true
			})
		case r.IntN(3) < 2:
			if find(inside, f.inside()) != None || find(outside, f.outside()) != None {
				continue // the pipeline never adds a key twice
			}
			ref, ok := add(table, f)
			if !ok {
				if len(live) < capacity*9/10 {
					t.Fatalf("refused with %d of %d sessions", len(live), capacity)
				}
				continue
			}
			inside[f.inside()], outside[f.outside()], live[ref] = ref, ref, f
		default:
			for ref, f := range live {
				table.Remove(ref)
				delete(inside, f.inside())
				delete(outside, f.outside())
				delete(live, ref)
				break
			}
		}
		if table.Len() != len(live) {
			t.Fatalf("step %d: %d sessions, expected %d", i, table.Len(), len(live))
		}
		n := 1 + r.IntN(MaxBatch)
		for j := range n {
			if f := smallFlow(r); r.IntN(2) == 0 {
				b.Keys[j] = f.inside()
			} else {
				b.Keys[j] = f.outside()
			}
		}
		b.Reset()
		table.Hash(&b, n/2)
		table.Match(&b, n/3)
		table.Hash(&b, n)
		table.Match(&b, n)
		for j := range n {
			want := find(inside, b.Keys[j])
			if b.Keys[j].mask == outsideMask {
				want = find(outside, b.Keys[j])
			}
			if table.Found(&b, j) != want || table.Find(&b.Keys[j]) != want {
				t.Fatalf("step %d: key %+v: batch found %d, single %d, expected %d", i, b.Keys[j], table.Found(&b, j), table.Find(&b.Keys[j]), want)
			}
		}
	}
}

// bigFlow gives each index a flow of its own.
func bigFlow(i int) flow {
	return flow{1, inet.Addr{Lo: 0xffff_0a00_0000 + uint64(i>>6)}, inet.Addr{Lo: 0xffff_0808_0000 + uint64(i&63)},
		inet.Addr{Lo: 0xffff_c000_0200 + uint64(i>>16)}, uint16(i), 53, uint16(i), 17}
}

func TestFullTable(t *testing.T) {
	const n = 10_000
	table := newTable(t, n, randomSecret(rand.New(rand.NewPCG(3, 4))))
	for i := range n {
		if _, ok := add(table, bigFlow(i)); !ok {
			t.Fatalf("refused at %d of %d", i, n)
		}
	}
	if _, ok := add(table, bigFlow(n)); ok {
		t.Error("a full table takes one more")
	}
	for i := range n {
		k := bigFlow(i).outside()
		if table.Find(&k) == None {
			t.Fatalf("flow %d is lost", i)
		}
	}
	for ref := range uint32(n) {
		table.Remove(ref)
	}
	for i := range table.buckets {
		if b := &table.buckets[i]; b.tags != [8]uint16{} || b.next != 0 {
			t.Fatalf("bucket %d is not empty after all sessions are gone: %+v", i, b)
		}
	}
}

// Flows that all fall into one bucket under one secret spread under another.
func TestCollisionsNeedTheSecret(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	known := newTable(t, 4096, randomSecret(r))
	var evil []flow
	for i := 0; len(evil) < 200; i++ {
		f := bigFlow(i)
		if k := f.inside(); known.bucketOf(known.secret.hash(&k)) == &known.buckets[0] {
			evil = append(evil, f)
		}
	}
	other := newTable(t, 4096, randomSecret(r))
	for _, f := range evil {
		if _, ok := add(other, f); !ok {
			t.Fatal("refused")
		}
	}
	if n := other.MaxProbe(); n > 2 {
		t.Errorf("200 flows chosen against another secret make a chain of %d buckets, expected 2 at the most", n)
	}
}

func TestNoAllocations(t *testing.T) {
	table := newTable(t, 1024, Secret{1, 2, 3, 4, 5, 6, 7, 8})
	var b Batch
	i := 0
	if n := testing.AllocsPerRun(100, func() {
		f := bigFlow(i)
		i++
		add(table, f)
		b.Keys[0] = f.inside()
		b.Reset()
		table.Hash(&b, 1)
		table.Match(&b, 1)
		table.Remove(table.Found(&b, 0))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAddRemove(b *testing.B) {
	const n = 1 << 20
	table := newTable(b, n, Secret{1, 3, 5, 7, 11, 13, 17, 19})
	for i := range n / 2 {
		add(table, bigFlow(i))
	}
	i := 0
	for b.Loop() {
		ref, _ := add(table, bigFlow(n/2+i))
		table.Remove(ref)
		i = (i + 1) & (n/2 - 1)
	}
}
