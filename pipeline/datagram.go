// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"math/bits"
	"math/rand/v2"

	"weir/pipeline/drop"
	"weir/pipeline/inet"
)

// Only the first fragment of a datagram has ports. reassemble puts no datagram together: it
// remembers the ports of the first piece for those that follow, in whatever order they come (RFC
// 4787 REQ-14). A piece that comes before the first waits for it, and goes on after it. What no
// receiver shall put together does not pass: pieces that overlap (RFC 1858, RFC 3128, RFC 5722) end
// their datagram.
//
// All of it is bounded, and a flood displaces only its own datagrams (REQ-14a): inside and outside
// have separate tables; within one, a datagram's holder is its VPC or the external address that it
// is for, and each holder has a share.

// Bounds on one side, inside or outside, of a worker.
const (
	maxDatagrams     = 2048 // in pieces at the same time
	maxDatagramsEach = 512  // of one holder
	maxWaiting       = 128  // pieces that wait for their first one; twice that is 3 % of a mempool
	maxWaitingEach   = 32   // of one holder
	maxWaitingPieces = 16   // of one datagram
	maxRanges        = 32   // of a datagram, seen and not adjoining

	waitingMillis  = 2000  // that a piece waits
	datagramMillis = 30000 // that the first piece's ports are remembered

	maxFollowing    = maxDatagrams - maxWaiting - 1 // each piece that waits has an entry
	datagramBuckets = maxDatagrams
	holders         = 4096
	lookBack        = 8 // of the oldest datagrams, how many are looked at for one to displace
)

// datagramKey is what the pieces of a datagram have in common (RFC 791 §3.2, RFC 8200 §4.5). In
// IPv6 the protocol is not part of it.
type datagramKey struct {
	local, remote inet.Addr
	id            uint32
	vpc           uint32 // slot; 0 outside
	proto         uint8
}

// Classes of datagrams, each with its lists, oldest first.
const (
	waiting   = iota // the first piece has not come
	following        // it has come, or is not needed
	numDatagramClasses
)

// datagram is what is known of a datagram in pieces.
type datagram struct {
	key    datagramKey
	hash   uint32
	chain  uint16 // the next one in its bucket, or free
	links  [2]link
	holder uint16
	class  uint8
	began  bool // the first piece has come
	dead   bool // pieces overlapped
	named  bool // id is set

	proto                 uint8       // of the transport
	refusal               drop.Reason // of the first piece: the others share its fate
	localPort, remotePort uint16
	id                    uint16 // that all pieces leave with through SNAT
	since                 uint32 // millisecond of the class's begin
	first, last           uint32 // call in which the first piece came, and any piece
	total                 uint32 // bytes after the IP header; 0: the last piece has not come
	seen                  uint32
	ranges                [maxRanges]byteRange
	numRanges             uint8
	numWaiting            uint8
	head, tail            uint16 // pieces that wait

	segment segment // of TCP, as the first piece has it; end: less that piece's size
}

type byteRange struct{ from, to uint16 }

// fifo is a list of datagrams, oldest first; 0 is none. A datagram is in two: its side's and its
// holder's.
type (
	fifo struct{ head, tail, n uint16 }
	link struct{ prev, next uint16 }
)

const (
	ofSide = iota
	ofHolder
)

// holder counts what a VPC, or packets to an external address, have in the table. Holders share an
// entry by chance only.
type holder struct {
	lists   [numDatagramClasses]fifo
	waiting uint16
}

// heldPiece is a piece that waits for its first one.
type heldPiece struct {
	packet Packet
	port   uint8  // by which it came
	next   uint16 // of the same datagram, or free
}

// fragments are the datagrams in pieces of one side. Index 0 of datagrams and held is unused.
type fragments struct {
	inside    bool
	datagrams [maxDatagrams + 1]datagram
	held      [maxWaiting + 1]heldPiece
	buckets   [datagramBuckets]uint16
	holders   [holders]holder
	lists     [numDatagramClasses]fifo
	free      uint16 // datagrams
	freeHeld  uint16
	waiting   int // how many of held are in use
}

func newFragments(inside bool) *fragments {
	t := &fragments{inside: inside}
	for i := maxDatagrams; i > 0; i-- {
		t.datagrams[i].chain, t.free = t.free, uint16(i)
	}
	for i := maxWaiting; i > 0; i-- {
		t.held[i].next, t.freeHeld = t.freeHeld, uint16(i)
	}
	return t
}

// followingPiece is a piece that goes on after its first one: slot is where it waited, 0 when it
// came in the same burst.
type followingPiece struct {
	packet *Packet
	slot   uint16
}

// virtualReassembly is the worker's part of it.
type virtualReassembly struct {
	sides     [2]*fragments // of packets from inside, and from outside
	secret    uint64
	call      uint32 // counts calls of reassemble
	followers []followingPiece
	complete  []*datagram // in this call
	later     Burst       // of followers
}

func (v *virtualReassembly) init(r *rand.ChaCha8) {
	v.sides = [2]*fragments{newFragments(true), newFragments(false)}
	v.secret = r.Uint64()
	v.followers = make([]followingPiece, 0, MaxBurst+maxWaiting)
	v.complete = make([]*datagram, 0, MaxBurst)
}

func (v *virtualReassembly) hash(k *datagramKey) uint32 {
	h, l := bits.Mul64(k.local.Hi^v.secret, k.local.Lo^0x9e3779b97f4a7c15|1)
	h2, l2 := bits.Mul64(k.remote.Hi^h^l, k.remote.Lo^v.secret|1)
	h3, l3 := bits.Mul64(uint64(k.vpc)<<32|uint64(k.id)^h2^l2, 0xd6e8feb86659fd93^uint64(k.proto))
	return uint32(h3 ^ l3)
}

func (t *fragments) find(k *datagramKey, hash uint32) uint16 {
	for i := t.buckets[hash%datagramBuckets]; i != 0; i = t.datagrams[i].chain {
		if d := &t.datagrams[i]; d.hash == hash && d.key == *k {
			return i
		}
	}
	return 0
}

// add notes the bytes that a piece brings, or says why it may not pass.
func (d *datagram) add(p *Packet) verdict {
	from, to := p.at, p.at+p.size
	for _, r := range d.ranges[:d.numRanges] {
		if from == r.from && to == r.to {
			return duplicate // RFC 8200 §4.5: may be dropped alone
		}
		if from < r.to && r.from < to {
			return refuse(drop.FragmentOverlap)
		}
	}
	// After the last piece, or a last piece before another: lengths that contradict each other.
	if d.total != 0 && (uint32(to) > d.total || !p.more) {
		return refuse(drop.FragmentOverlap)
	}
	if !p.more {
		for _, r := range d.ranges[:d.numRanges] {
			if r.from >= to {
				return refuse(drop.FragmentOverlap)
			}
		}
	}
	if d.numRanges == maxRanges {
		if d.join(); d.numRanges == maxRanges {
			return refuse(drop.FragmentLimit)
		}
	}
	if !p.more {
		d.total = uint32(to)
	}
	d.ranges[d.numRanges] = byteRange{from, to}
	d.numRanges++
	d.seen += uint32(p.size)
	return goesOn
}

// join makes one range of those that adjoin.
func (d *datagram) join() {
	for i := uint8(0); i < d.numRanges; i++ {
		for j := uint8(0); j < d.numRanges; {
			a, b := &d.ranges[i], d.ranges[j]
			switch {
			case i != j && a.to == b.from:
				a.to = b.to
			case i != j && b.to == a.from:
				a.from = b.from
			default:
				j++
				continue
			}
			d.numRanges--
			d.ranges[j] = d.ranges[d.numRanges]
			if i == d.numRanges { // it was a that has moved to j
				i = j
			}
			j = 0
		}
	}
}

// completed notes that nothing more of a datagram will come. It is forgotten at the end of the
// call: its packets know it until then.
func (w *Worker) completed(d *datagram) {
	if d.began && d.seen == d.total {
		w.pieces.complete = append(w.pieces.complete, d)
	}
}

// newDatagram returns the entry of a datagram of holder o; 0: there is no room.
func (w *Worker) newDatagram(t *fragments, k *datagramKey, hash uint32, o uint16, class uint8) uint16 {
	if class == following && !w.room(t, o) {
		return 0
	}
	i := t.free // there is one: see the bounds
	d := &t.datagrams[i]
	t.free = d.chain
	bucket := &t.buckets[hash%datagramBuckets]
	*d = datagram{key: *k, hash: hash, holder: o, chain: *bucket}
	*bucket = i
	w.enlist(t, i, class)
	return i
}

// room makes sure that holder o may have one more datagram whose first piece has come. If need be
// the oldest gives way: the holder's own if it has its share or as many as any other.
func (w *Worker) room(t *fragments, o uint16) bool {
	own := &t.holders[o].lists[following]
	all := &t.lists[following]
	victim := uint16(0)
	switch {
	case own.n >= maxDatagramsEach:
		victim = own.head
	case all.n >= maxFollowing:
		most := own.n
		victim = own.head
		i := all.head
		for range lookBack {
			if i == 0 {
				break
			}
			d := &t.datagrams[i]
			if n := t.holders[d.holder].lists[following].n; n > most {
				victim, most = i, n
			}
			i = d.links[ofSide].next
		}
		if victim == 0 {
			victim = all.head
		}
	default:
		return true
	}
	if t.datagrams[victim].last == w.pieces.call {
		return false // packets of this burst know it
	}
	t.forget(victim)
	return true
}

// wait keeps a copy of a piece until the first of its datagram comes.
func (w *Worker) wait(t *fragments, i uint16, port int, p *Packet) verdict {
	d := &t.datagrams[i]
	o := &t.holders[d.holder]
	full := func() verdict {
		if d.numWaiting == 0 {
			t.forget(i)
		}
		return refuse(drop.FragmentLimit)
	}
	if d.numWaiting == maxWaitingPieces {
		return refuse(drop.FragmentLimit)
	}
	for o.waiting >= maxWaitingEach || t.freeHeld == 0 {
		victim := o.lists[waiting].head
		if o.waiting < maxWaitingEach {
			// All places are taken: the oldest datagram of the holder with the most gives way.
			most := o.waiting
			if victim == i {
				most = 0
			}
			for v := t.lists[waiting].head; v != 0; v = t.datagrams[v].links[ofSide].next {
				if n := t.holders[t.datagrams[v].holder].waiting; n > most && v != i {
					victim, most = v, n
				}
			}
		}
		if victim == i {
			victim = d.links[ofHolder].next
		}
		if victim == 0 {
			return full()
		}
		w.dropWaiting(t, victim, drop.FragmentLimit)
		t.forget(victim)
	}
	slot := t.freeHeld
	h := &t.held[slot]
	t.freeHeld = h.next
	h.packet, h.port, h.next = *p, uint8(port), 0
	if d.tail != 0 {
		t.held[d.tail].next = slot
	} else {
		d.head = slot
	}
	d.tail = slot
	d.numWaiting++
	o.waiting++
	t.waiting++
	return held
}

// resume lets the pieces that waited for datagram i's first follow it. It reports false when there
// is no room to remember it.
func (w *Worker) resume(t *fragments, i uint16) bool {
	d := &t.datagrams[i]
	if !w.room(t, d.holder) {
		w.dropWaiting(t, i, drop.FragmentLimit)
		t.forget(i)
		return false
	}
	for slot := d.head; slot != 0; slot = t.held[slot].next {
		p := &t.held[slot].packet
		p.proto, p.localPort, p.remotePort = d.proto, d.localPort, d.remotePort
		w.pieces.followers = append(w.pieces.followers, followingPiece{p, slot})
	}
	t.holders[d.holder].waiting -= uint16(d.numWaiting)
	d.head, d.tail, d.numWaiting = 0, 0, 0
	t.delist(i)
	w.enlist(t, i, following)
	return true
}

// kill ends a datagram whose pieces overlap: those that wait, and all that are still to come.
func (w *Worker) kill(t *fragments, i uint16) {
	d := &t.datagrams[i]
	d.dead = true
	if d.class == waiting {
		w.dropWaiting(t, i, drop.FragmentOverlap)
		t.delist(i)
		if !w.room(t, d.holder) {
			w.enlist(t, i, waiting)
			t.forget(i)
			return
		}
		w.enlist(t, i, following)
	}
}

// dropWaiting drops the pieces of a datagram that wait.
func (w *Worker) dropWaiting(t *fragments, i uint16, r drop.Reason) {
	d := &t.datagrams[i]
	for slot := d.head; slot != 0; {
		h := &t.held[slot]
		next := h.next
		w.out(&h.packet, int(h.port), t.inside, refuse(r))
		t.vacate(slot)
		slot = next
	}
	t.holders[d.holder].waiting -= uint16(d.numWaiting)
	d.head, d.tail, d.numWaiting = 0, 0, 0
}

// vacate gives the place of a piece back.
func (t *fragments) vacate(slot uint16) {
	h := &t.held[slot]
	h.packet = Packet{}
	h.next, t.freeHeld = t.freeHeld, slot
	t.waiting--
}

// forget gives the entry of a datagram back. No piece of it waits.
func (t *fragments) forget(i uint16) {
	d := &t.datagrams[i]
	at := &t.buckets[d.hash%datagramBuckets]
	for *at != i {
		at = &t.datagrams[*at].chain
	}
	*at = d.chain
	t.delist(i)
	d.chain, t.free = t.free, i
}

// enlist puts a datagram at the end of the lists of a class.
func (w *Worker) enlist(t *fragments, i uint16, class uint8) {
	d := &t.datagrams[i]
	d.class, d.since = class, w.tick
	t.append(&t.lists[class], i, ofSide)
	t.append(&t.holders[d.holder].lists[class], i, ofHolder)
}

func (t *fragments) delist(i uint16) {
	d := &t.datagrams[i]
	t.remove(&t.lists[d.class], i, ofSide)
	t.remove(&t.holders[d.holder].lists[d.class], i, ofHolder)
}

func (t *fragments) append(l *fifo, i uint16, of int) {
	t.datagrams[i].links[of] = link{prev: l.tail}
	if l.tail != 0 {
		t.datagrams[l.tail].links[of].next = i
	} else {
		l.head = i
	}
	l.tail = i
	l.n++
}

func (t *fragments) remove(l *fifo, i uint16, of int) {
	k := t.datagrams[i].links[of]
	if k.prev != 0 {
		t.datagrams[k.prev].links[of].next = k.next
	} else {
		l.head = k.next
	}
	if k.next != 0 {
		t.datagrams[k.next].links[of].prev = k.prev
	} else {
		l.tail = k.prev
	}
	l.n--
}

// ageFragments drops the pieces whose first has not come in time, and forgets what is old. In each
// list the oldest is first.
func (w *Worker) ageFragments() {
	for _, t := range w.pieces.sides {
		for {
			i := t.lists[waiting].head
			if i == 0 || w.tick-t.datagrams[i].since <= waitingMillis {
				break
			}
			w.dropWaiting(t, i, drop.FragmentTimeout)
			t.forget(i)
		}
		for {
			i := t.lists[following].head
			if i == 0 || w.tick-t.datagrams[i].since <= datagramMillis {
				break
			}
			t.forget(i)
		}
	}
}

// abandonFragments drops all pieces that wait.
func (w *Worker) abandonFragments() {
	for _, t := range w.pieces.sides {
		for i := t.lists[waiting].head; i != 0; i = t.lists[waiting].head {
			w.dropWaiting(t, i, drop.FragmentTimeout)
			t.forget(i)
		}
	}
}

// side returns the table of one side.
func (v *virtualReassembly) side(inside bool) *fragments {
	if inside {
		return v.sides[0]
	}
	return v.sides[1]
}

// waiting returns how many pieces wait.
func (v *virtualReassembly) waiting() int { return v.sides[0].waiting + v.sides[1].waiting }
