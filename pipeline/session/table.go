// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/bits"
	"sync/atomic"
	"unsafe"

	"weir/pipeline/fault"
	"weir/pipeline/inet"
	"weir/pipeline/memory"
	"weir/pipeline/prefetch"
)

// bucket is one cache line of the index. A tag of 0 is an empty place. A full bucket goes on in an
// overflow bucket; nothing ever moves, so that a reader or a crash never finds an entry half-way
// between two places.
type bucket struct {
	tags [8]uint16
	refs [8]uint32
	next uint32 // 1 + index of the overflow bucket; 0: none
	_    [3]uint32
}

// tableHeader holds what the owner changes beside the sessions.
type tableHeader struct {
	Secret   Secret
	Capacity uint64
	free     uint64 // how many indexes the free stack holds
	spare    uint64 // 1 + index of the first unused overflow bucket; 0: none
	_        [5]uint64
}

// Region is where the parts of a table lie in a segment.
type Region struct {
	Header, Sessions, Buckets, Overflow, Free uint64
	Capacity                                  uint64
}

// Reserve adds a table for capacity sessions to the layout of a segment.
func Reserve(l *memory.Layout, capacity int) Region {
	n := bucketCount(capacity)
	return Region{
		Header:   memory.Add[tableHeader](l, 1),
		Sessions: memory.Add[Session](l, capacity),
		Buckets:  memory.Add[bucket](l, n),
		Overflow: memory.Add[bucket](l, n/8+8),
		Free:     memory.Add[uint32](l, capacity),
		Capacity: uint64(capacity),
	}
}

// bucketCount gives a bucket of eight up to five entries when the table is full: two for a session,
// and one for each different remote address of a mapping.
func bucketCount(capacity int) int { return capacity*5/8 + 1 }

// Types are the types of tables and mappings, for the layout hash of the segment it lies in.
func Types() []any {
	return []any{Session{}, bucket{}, tableHeader{}, Region{}, Mapping{}, mappingsHeader{}, MappingsRegion{}}
}

// Table is the owner's view of a table.
type Table struct {
	h        *tableHeader
	secret   Secret // a copy beside the code that uses it
	sessions []Session
	buckets  []bucket
	overflow []bucket
	free     []uint32
}

// Open returns the table that lies at r. A fresh one needs Init, one that was used Rebuild.
func Open(s *memory.Segment, r Region) *Table {
	n := bucketCount(int(r.Capacity))
	t := &Table{
		h:        memory.At[tableHeader](s, r.Header),
		sessions: memory.Slice[Session](s, r.Sessions, int(r.Capacity)),
		buckets:  memory.Slice[bucket](s, r.Buckets, n),
		overflow: memory.Slice[bucket](s, r.Overflow, n/8+8),
		free:     memory.Slice[uint32](s, r.Free, int(r.Capacity)),
	}
	t.secret = t.h.Secret
	return t
}

// Init makes an empty table of zeroed memory.
func (t *Table) Init(secret Secret) {
	t.h.Secret, t.secret = secret, secret
	t.h.Capacity = uint64(len(t.sessions))
	t.clear()
}

// clear empties the index and the free stack.
func (t *Table) clear() {
	clear(t.buckets)
	clear(t.overflow)
	for i := range t.overflow {
		t.overflow[i].next = uint32(i + 2)
	}
	t.overflow[len(t.overflow)-1].next = 0
	t.h.spare = 1
	t.h.free = 0
}

// Rebuild makes index and free stack anew from the sessions, which are the only truth after the
// owner died. keep decides for each live session whether it stays; it may change the session, but
// not its keys.
func (t *Table) Rebuild(keep func(ref uint32, s *Session) bool) {
	t.secret = t.h.Secret
	t.clear()
	for i := len(t.sessions) - 1; i >= 0; i-- { // so that the stack gives low indexes first
		s, ref := &t.sessions[i], uint32(i)
		s.Flags &^= Paired
		switch {
		case s.word == 0:
		case s.State() == Free || s.State() >= NumStates || t.taken(s) || !t.link(ref, s):
			atomic.StoreUint64(&s.word, 0)
		case !keep(ref, s):
			inside, outside := s.keys()
			t.unlink(t.secret.hash(&inside), ref)
			t.unlink(t.secret.hash(&outside), ref)
			atomic.StoreUint64(&s.word, 0)
		case s.Mapping != None && s.State() != Unconfirmed:
			t.Pair(ref, s)
		}
		if s.word == 0 {
			t.free[t.h.free] = ref
			t.h.free++
		}
	}
}

// taken reports whether another session has a key of s, which only damage makes so.
func (t *Table) taken(s *Session) bool {
	inside, outside := s.keys()
	return t.Find(&inside) != None || t.Find(&outside) != None
}

// Fill puts every session on the free stack of a table that Init made.
func (t *Table) Fill() { t.Rebuild(func(uint32, *Session) bool { return true }) }

// Capacity returns the number of sessions the table can hold.
func (t *Table) Capacity() int { return len(t.sessions) }

// Len returns the number of live sessions.
func (t *Table) Len() int { return len(t.sessions) - int(t.h.free) }

// Read copies session ref for a process that does not own the table. False: it is free, or changes
// all the time.
func (t *Table) Read(ref uint32) (s Session, live bool) {
	for range readTries {
		s = memory.Read(&t.sessions[ref])
		if s.word == 0 {
			return s, false
		}
		if again := memory.Read(&t.sessions[ref]); s == again {
			return s, true
		}
	}
	return s, false
}

// readTries is how often Read looks for a session that stays what it is for as long as it takes to
// read it twice.
const readTries = 16

// At returns session ref.
func (t *Table) At(ref uint32) *Session { return &t.sessions[ref] }

// Alloc takes a free session; the caller fills all of it but the word and calls Publish.
func (t *Table) Alloc() (ref uint32, s *Session, ok bool) {
	if t.h.free == 0 {
		return None, nil, false
	}
	ref = t.free[t.h.free-1]
	t.h.free--
	if s = &t.sessions[ref]; s.word != 0 {
		panic(damaged)
	}
	return ref, s, true
}

// Publish makes a session from Alloc live under word, in both directions. It fails when the index
// has no room left for it; the session is then free again.
func (t *Table) Publish(ref uint32, s *Session, word uint64) bool {
	fault.Point("session.filled")
	atomic.StoreUint64(&s.word, word)
	fault.Point("session.published")
	if !t.link(ref, s) {
		t.Remove(ref)
		return false
	}
	return true
}

// Remove ends a session.
func (t *Table) Remove(ref uint32) {
	s := &t.sessions[ref]
	inside, outside := s.keys()
	if s.Flags&Paired != 0 {
		t.unpair(ref, s)
	}
	atomic.StoreUint64(&s.word, 0)
	fault.Point("session.removed")
	t.unlink(t.secret.hash(&inside), ref)
	fault.Point("session.half-unlinked")
	t.unlink(t.secret.hash(&outside), ref)
	t.free[t.h.free] = ref
	t.h.free++
}

// FindPaired returns a session of those that share a mapping and a remote address, or None.
func (t *Table) FindPaired(external, remote inet.Addr, externalPort uint16, proto uint8) uint32 {
	k := pairKey(external, remote, externalPort, proto)
	return t.findPaired(t.secret.hash(&k), &k)
}

// findPaired finds one of the list by the entry of its first. What is found by a tag that matches
// by chance need not be in the list.
func (t *Table) findPaired(h uint64, k *Key) uint32 {
	tag := tagOf(h)
	var steps walk
	for b := t.bucketOf(h); ; b = &t.overflow[b.next-1] {
		steps.step()
		for i := range b.tags {
			if b.tags[i] == tag {
				if s := &t.sessions[b.refs[i]]; s.Flags&Paired != 0 && k.Names(s) {
					return b.refs[i]
				}
			}
		}
		if b.next == 0 {
			return None
		}
	}
}

// Pair puts a live session into the list of those that share its mapping and remote address. It
// reports whether there was room.
func (t *Table) Pair(ref uint32, s *Session) bool {
	k := s.pair()
	h := t.secret.hash(&k)
	s.Prev, s.Next = None, None
	if first := t.findPaired(h, &k); first != None {
		f := &t.sessions[first]
		s.Prev, s.Next = first, f.Next
		if f.Next != None {
			t.sessions[f.Next].Prev = ref
		}
		f.Next = ref
	} else if !t.insert(h, ref) {
		return false
	}
	s.Flags |= Paired
	return true
}

// Unpair takes a session that has let go of its mapping out of that list.
func (t *Table) Unpair(s *Session) {
	if s.Flags&Paired != 0 {
		t.unpair(uint32((uintptr(unsafe.Pointer(s))-uintptr(unsafe.Pointer(&t.sessions[0])))/unsafe.Sizeof(*s)), s)
	}
}

// unpair takes a session out of that list.
func (t *Table) unpair(ref uint32, s *Session) {
	s.Flags &^= Paired
	if s.Next != None {
		t.sessions[s.Next].Prev = s.Prev
	}
	if s.Prev != None {
		t.sessions[s.Prev].Next = s.Next
		return
	}
	k := s.pair()
	h := t.secret.hash(&k)
	t.unlink(h, ref)
	if s.Next != None {
		t.insert(h, s.Next) // into the place that has just become free
	}
}

func (t *Table) link(ref uint32, s *Session) bool {
	inside, outside := s.keys()
	hi := t.secret.hash(&inside)
	if !t.insert(hi, ref) {
		return false
	}
	fault.Point("session.half-linked")
	if !t.insert(t.secret.hash(&outside), ref) {
		t.unlink(hi, ref)
		return false
	}
	return true
}

// bucketOf uses the hash's upper half, the tag its lower.
func (t *Table) bucketOf(h uint64) *bucket {
	i, _ := bits.Mul64(h, uint64(len(t.buckets)))
	return &t.buckets[i]
}

// tagOf returns the hash's tag, never 0.
func tagOf(h uint64) uint16 {
	tag := uint16(h)
	if tag == 0 {
		return 1
	}
	return tag
}

func (t *Table) insert(h uint64, ref uint32) bool {
	var steps walk
	b := t.bucketOf(h)
	for {
		steps.step()
		for i, tag := range &b.tags {
			if tag == 0 {
				b.refs[i] = ref
				b.tags[i] = tagOf(h)
				return true
			}
		}
		if b.next == 0 {
			if t.h.spare == 0 {
				return false
			}
			o := &t.overflow[t.h.spare-1]
			b.next, t.h.spare, o.next = uint32(t.h.spare), uint64(o.next), 0
		}
		b = &t.overflow[b.next-1]
	}
}

// unlink removes the entry of ref. An overflow bucket that becomes empty goes back to the spare
// ones.
func (t *Table) unlink(h uint64, ref uint32) {
	first := t.bucketOf(h)
	tag := tagOf(h)
	var before *bucket
	var steps walk
	for b := first; ; {
		steps.step()
		for i := range b.tags {
			if b.tags[i] == tag && b.refs[i] == ref {
				b.tags[i] = 0
				if before != nil && b.tags == [8]uint16{} {
					i := before.next
					before.next = b.next
					b.next, t.h.spare = uint32(t.h.spare), uint64(i)
				}
				return
			}
		}
		if b.next == 0 {
			return
		}
		before, b = b, &t.overflow[b.next-1]
	}
}

// candidates returns a bit (the highest of a 16-bit lane) for each place of the four tags in x that
// may hold tag. A false one can only follow a true one, and the key decides anyway.
func candidates(x uint64, tag uint16) uint64 {
	const ones, tops = 0x0001_0001_0001_0001, 0x8000_8000_8000_8000
	x ^= uint64(tag) * ones
	return (x - ones) &^ x & tops
}

func (b *bucket) words() *[2]uint64 { return (*[2]uint64)(unsafe.Pointer(&b.tags)) }

// first returns a reference in b whose tag fits, or None. It takes no branch: which place it is
// cannot be foreseen, and a branch that goes wrong would also stop the loads behind it.
func (b *bucket) first(tag uint16) uint32 {
	w := b.words()
	// The tops of the first four places move into the lower halves of the lanes, those of the
	// others stay.
	m := candidates(w[0], tag)>>8 | candidates(w[1], tag)
	at := uint(bits.TrailingZeros64(m)) // place i: 16*i+7, or 16*(i-4)+15; 64: none
	ref := b.refs[(at>>4|at>>1&4)&7]
	if m == 0 {
		ref = None
	}
	return ref
}

// Find returns the session that k names a direction of, or None.
func (t *Table) Find(k *Key) uint32 { return t.find(t.secret.hash(k), k) }

func (t *Table) find(h uint64, k *Key) uint32 {
	tag := tagOf(h)
	var steps walk
	for b := t.bucketOf(h); ; b = &t.overflow[b.next-1] {
		steps.step()
		for i := range b.tags {
			if b.tags[i] == tag && k.Names(&t.sessions[b.refs[i]]) {
				return b.refs[i]
			}
		}
		if b.next == 0 {
			return None
		}
	}
}

// MaxBatch is the most keys of one Batch.
const MaxBatch = 64

// Batch is a set of look-ups whose cache misses are spent side by side, and beside what the caller
// does meanwhile: Hash asks for the buckets of keys; Match, some time later, for the sessions whose
// tags fit; Found, later again, compares. Reset begins a new one.
type Batch struct {
	Keys    [MaxBatch]Key
	Hashes  [MaxBatch]uint64 // out: the hash of each key
	hashed  uint
	matched uint
	refs    [MaxBatch]uint32
	lines   [MaxBatch]unsafe.Pointer // to ask for: buckets, and in their place sessions
}

// Reset forgets all keys.
func (b *Batch) Reset() { b.hashed, b.matched = 0, 0 }

// Hash hashes the keys below to that have not been yet, and prefetches their buckets.
func (t *Table) Hash(b *Batch, to int) {
	first, n := b.hashed, min(uint(to), MaxBatch)
	if n <= first {
		return
	}
	for i := first; i < n; i++ {
		h := t.secret.hash(&b.Keys[i])
		b.Hashes[i] = h
		b.lines[i] = unsafe.Pointer(t.bucketOf(h))
	}
	b.hashed = n
	prefetch.Lines(&b.lines[first], int(n-first))
}

// Match looks for the tags of keys below to, which Hash has seen, and prefetches the sessions that
// they name.
func (t *Table) Match(b *Batch, to int) {
	first, n := b.matched, min(uint(to), b.hashed, MaxBatch)
	if n <= first {
		return
	}
	m := first
	for i := first; i < n; i++ {
		ref := (*bucket)(b.lines[i]).first(tagOf(b.Hashes[i]))
		b.refs[i] = ref
		if ref != None {
			b.lines[m] = unsafe.Pointer(&t.sessions[ref])
			m++
		}
	}
	b.matched = n
	prefetch.Pairs(&b.lines[first], int(m-first))
}

// Found returns the session that key i names a direction of, or None. Match has been asked about
// it.
func (t *Table) Found(b *Batch, i int) uint32 {
	ref := b.refs[i]
	if ref == None && t.bucketOf(b.Hashes[i]).next == 0 || ref != None && b.Keys[i].Names(&t.sessions[ref]) {
		return ref
	}
	return t.find(b.Hashes[i], &b.Keys[i])
}

// MaxProbe returns the length of the longest chain of buckets, for the gauge that would show an
// attack on the hash.
func (t *Table) MaxProbe() int {
	most := 0
	for i := range t.buckets {
		n := 1
		for b := &t.buckets[i]; b.next != 0; b = &t.overflow[b.next-1] {
			n++
		}
		most = max(most, n)
	}
	return most
}
