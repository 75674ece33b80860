// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"sync/atomic"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/inet"
)

// NeighborState is what is known of a neighbor.
type NeighborState uint8

const (
	NeighborNone       NeighborState = iota // no entry
	NeighborIncomplete                      // wanted, and not resolved yet
	NeighborReachable                       // resolved
	NeighborStatic                          // its MAC is configured
)

func (s NeighborState) String() string {
	switch s {
	case NeighborNone:
		return "none"
	case NeighborIncomplete:
		return "incomplete"
	case NeighborReachable:
		return "reachable"
	case NeighborStatic:
		return "static"
	}
	return "unknown"
}

// Neighbor is one entry of the table: half a cache line. Control writes key first and word last; a
// worker reads state and MAC with one load.
type Neighbor struct {
	Addr inet.Addr
	Link uint32 // 1 + attachment; 0: never used
	_    uint32
	Word uint64 // State<<48 | MAC
}

// Neighbors is the table of link-layer addresses, in shared memory: control writes, workers read.
// It is a list of open hash tables, each eight times the one before it, whose entries never move,
// so that a slot's number is good as long as its entry lives. One is enough until it is half full;
// new entries go to the last.
type Neighbors struct {
	Entries []Neighbor // of all tables that there may be; those from Len on have no memory
	secret  uint64
	Used    int // control only

	first  uint32        // entries of the first table, a power of two
	tables atomic.Uint32 // that this process has mapped
}

// NewNeighbors returns the tables that lie in entries, of which tables have memory. The first has
// so many entries: a power of two.
func NewNeighbors(entries []Neighbor, first, tables int, secret uint64) *Neighbors {
	n := &Neighbors{Entries: entries, secret: secret, first: uint32(first)}
	n.tables.Store(uint32(tables))
	return n
}

// before returns how many entries the first tables have together.
func (n *Neighbors) before(tables uint32) uint32 { return n.first * (1<<(3*tables) - 1) / 7 }

// Len returns how many entries have memory.
func (n *Neighbors) Len() int { return int(n.before(n.tables.Load())) }

// Live returns the entries that have memory.
func (n *Neighbors) Live() []Neighbor { return n.Entries[:n.Len()] }

// is compares the address. Control may be between its two stores; but then word is 0, so a reader
// who finds a word and asks once more has seen a whole address.
func (e *Neighbor) is(a inet.Addr) bool {
	return atomic.LoadUint64(&e.Addr.Hi) == a.Hi && atomic.LoadUint64(&e.Addr.Lo) == a.Lo
}

// maxNeighborProbe bounds a search.
const maxNeighborProbe = 128

// NoNeighbor is no slot.
const NoNeighbor = ^uint32(0)

func (n *Neighbors) start(at attach.Word, a inet.Addr) uint32 {
	return inet.Hash(n.secret, uint32(at), a)
}

// Find returns the slot of a neighbor on an attachment, or NoNeighbor.
func (n *Neighbors) Find(on attach.Word, a inet.Addr) uint32 {
	hash := n.start(on, a)
	for table := n.tables.Load(); table > 0; table-- {
		if slot := n.findIn(table-1, hash, on, a); slot != NoNeighbor {
			return slot
		}
	}
	return NoNeighbor
}

// findIn is Find in one table.
func (n *Neighbors) findIn(table, hash uint32, on attach.Word, a inet.Addr) uint32 {
	base, mask := n.before(table), n.first<<(3*table)-1
	at := hash & mask
	for range maxNeighborProbe {
		e := &n.Entries[base+at]
		switch link := atomic.LoadUint32(&e.Link); {
		case link == 0:
			return NoNeighbor
		case link == uint32(on)+1 && e.is(a) && atomic.LoadUint64(&e.Word) != 0 && e.is(a):
			return base + at
		}
		at = (at + 1) & mask
	}
	return NoNeighbor
}

// Get returns state and MAC of the neighbor in slot.
func (n *Neighbors) Get(slot uint32) (NeighborState, config.MAC) {
	w := atomic.LoadUint64(&n.Entries[slot].Word)
	return NeighborState(w >> 48), MACOf(w)
}

// At returns what the neighbor in slot is the neighbor of.
func (n *Neighbors) At(slot uint32) (on attach.Word, a inet.Addr) {
	e := &n.Entries[slot]
	return attach.Word(atomic.LoadUint32(&e.Link) - 1), inet.Addr{Hi: atomic.LoadUint64(&e.Addr.Hi), Lo: atomic.LoadUint64(&e.Addr.Lo)}
}

// Set makes or changes an entry. Only control calls it.
func (n *Neighbors) Set(on attach.Word, a inet.Addr, state NeighborState, mac config.MAC) (uint32, error) {
	word := uint64(state)<<48 | MACWord(mac)
	if slot := n.Find(on, a); slot != NoNeighbor {
		atomic.StoreUint64(&n.Entries[slot].Word, word)
		return slot, nil
	}
	hash := n.start(on, a)
	for table := n.tables.Load(); table > 0; table-- {
		base, mask := n.before(table-1), n.first<<(3*(table-1))-1
		at := hash & mask
		for range maxNeighborProbe {
			if e := &n.Entries[base+at]; atomic.LoadUint64(&e.Word) == 0 {
				atomic.StoreUint64(&e.Addr.Hi, a.Hi)
				atomic.StoreUint64(&e.Addr.Lo, a.Lo)
				atomic.StoreUint32(&e.Link, uint32(on)+1)
				atomic.StoreUint64(&e.Word, word)
				n.Used++
				return base + at, nil
			}
			at = (at + 1) & mask
		}
	}
	return NoNeighbor, fmt.Errorf("neighbor table: no room for %s on %v among %d entries", a.Netip(), on, n.Used)
}

// Recount counts the entries that are in use, for a process that has just mapped them.
func (n *Neighbors) Recount() {
	n.Used = 0
	for slot := range n.Len() {
		if s, _ := n.Get(uint32(slot)); s != NeighborNone {
			n.Used++
		}
	}
}

// Remove ends an entry; its place may serve another neighbor from then on.
func (n *Neighbors) Remove(slot uint32) {
	atomic.StoreUint64(&n.Entries[slot].Word, 0)
	n.Used--
	// Behind the last entry of a run nobody looks further: give empty places at its end back.
	table := uint32(0)
	for n.before(table+1) <= slot {
		table++
	}
	base, mask := n.before(table), n.first<<(3*table)-1
	for at := slot - base; atomic.LoadUint32(&n.Entries[base+(at+1)&mask].Link) == 0; at = (at - 1) & mask {
		e := &n.Entries[base+at]
		if atomic.LoadUint64(&e.Word) != 0 || atomic.LoadUint32(&e.Link) == 0 {
			return
		}
		atomic.StoreUint32(&e.Link, 0)
	}
}

// A MAC as a number: its first byte is the lowest.
const (
	MACMask  = 1<<48 - 1
	MACGroup = 1
)

func MACWord(m config.MAC) uint64 {
	return uint64(m[0]) | uint64(m[1])<<8 | uint64(m[2])<<16 | uint64(m[3])<<24 | uint64(m[4])<<32 | uint64(m[5])<<40
}

func MACOf(w uint64) config.MAC {
	return config.MAC{byte(w), byte(w >> 8), byte(w >> 16), byte(w >> 24), byte(w >> 32), byte(w >> 40)}
}
