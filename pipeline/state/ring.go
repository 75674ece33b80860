// SPDX-License-Identifier: Apache-2.0

package state

import (
	"sync/atomic"

	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/inet"
	"weir/pipeline/memory"
)

// MessageKind says what a message on a punt ring is.
type MessageKind uint8

const (
	// To control.
	PuntFrame   MessageKind = iota + 1 // a frame for weir itself: ARP, ND, echo to an address of ours
	PuntResolve                        // a packet waits for the neighbor Addr
	PuntError                          // Reason calls for an ICMP error; the data is the packet as it arrived
	InjectFrame                        // from control: send this frame, tags and all, through the port
)

// Message is one slot of a ring.
type Message struct {
	Addr   inet.Addr   // PuntResolve: the neighbor. Else, on a tunnel, the endpoint that the frame came from
	At     attach.Word // where the frame came from, or is to go, or the neighbor is
	Kind   MessageKind
	Reason drop.Reason // PuntError
	Len    uint16
	MTU    uint16 // PuntError for TooBig: the next link's MTU
	_      [6]uint8
	_      uint64
	data   [RingFrame]byte
}

// RingFrame is the longest frame a ring takes; a longer one is cut, which only an ICMP error's
// quote may be.
const RingFrame = 2008

// Data returns the frame of the message.
func (m *Message) Data() []byte { return m.data[:min(int(m.Len), RingFrame)] }

const RingSlots = 512

// ring is a queue between two processes, one writer and one reader.
type ring struct {
	head  uint64 // next to write; the writer's
	_     [7]uint64
	tail  uint64 // next to read; the reader's
	_     [7]uint64
	slots [RingSlots]Message
}

// Ring is one process's end of a ring.
type Ring struct{ r *ring }

func openRing(s *memory.Segment, off uint64) Ring { return Ring{memory.At[ring](s, off)} }

// Put adds a message; false when the ring is full. Data is copied.
func (r Ring) Put(kind MessageKind, at attach.Word, reason drop.Reason, mtu uint16, addr inet.Addr, data []byte) bool {
	head := r.r.head
	if head-atomic.LoadUint64(&r.r.tail) >= RingSlots {
		return false
	}
	m := &r.r.slots[head%RingSlots]
	m.Kind, m.At, m.Reason, m.MTU, m.Addr = kind, at, reason, mtu, addr
	m.Len = uint16(copy(m.data[:], data))
	atomic.StoreUint64(&r.r.head, head+1)
	return true
}

// Used returns how many messages wait, for the writer.
func (r Ring) Used() uint64 { return r.r.head - atomic.LoadUint64(&r.r.tail) }

// Peek returns the oldest message, or nil. It stays in the ring, and may be read, until Pop. A
// writer that claims to have written more than there is room for is not believed: what it may have
// written is passed over.
func (r Ring) Peek() *Message {
	tail, head := r.r.tail, atomic.LoadUint64(&r.r.head)
	switch {
	case tail == head:
		return nil
	case head-tail > RingSlots:
		atomic.StoreUint64(&r.r.tail, head)
		return nil
	}
	return &r.r.slots[tail%RingSlots]
}

// Pop removes the message that Peek returned.
func (r Ring) Pop() { atomic.StoreUint64(&r.r.tail, r.r.tail+1) }

// Reset empties the ring. Neither end may be in use.
func (r Ring) Reset() { r.r.head, r.r.tail = 0, 0 }
