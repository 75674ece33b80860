// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"sync/atomic"

	"weir/pipeline/inet"
	"weir/pipeline/memory"
)

// MessageKind says what a message on a punt ring is.
type MessageKind uint8

const (
	// To control.
	PuntFrame   MessageKind = iota + 1 // a frame for weir itself: ARP, ND, echo to an address of ours
	PuntResolve                        // a packet waits for the neighbor Addr on Port
	PuntError                          // Reason calls for an ICMP error; the data is the packet as it arrived
	InjectFrame                        // from control: send this frame by Port
)

// Message is one slot of a ring.
type Message struct {
	Addr   inet.Addr // PuntResolve
	Kind   MessageKind
	Port   uint8
	Reason Reason // PuntError
	_      uint8
	Len    uint16
	MTU    uint16 // PuntError for TooBig: the next link's MTU
	_      [2]uint64
	data   [ringFrame]byte
}

// ringFrame is the longest frame a ring takes; a longer one is cut, which only an ICMP error's quote may be.
const ringFrame = 2008

// Data returns the frame of the message.
func (m *Message) Data() []byte { return m.data[:min(int(m.Len), ringFrame)] }

const ringSlots = 512

// ring is a queue between two processes, one writer and one reader.
type ring struct {
	head  uint64 // next to write; the writer's
	_     [7]uint64
	tail  uint64 // next to read; the reader's
	_     [7]uint64
	slots [ringSlots]Message
}

// Ring is one process's end of a ring.
type Ring struct{ r *ring }

func openRing(s *memory.Segment, off uint64) Ring { return Ring{memory.At[ring](s, off)} }

// Put adds a message; false when the ring is full. Data is copied.
func (r Ring) Put(kind MessageKind, port uint8, reason Reason, mtu uint16, addr inet.Addr, data []byte) bool {
	head := r.r.head
	if head-atomic.LoadUint64(&r.r.tail) >= ringSlots {
		return false
	}
	m := &r.r.slots[head%ringSlots]
	m.Kind, m.Port, m.Reason, m.MTU, m.Addr = kind, port, reason, mtu, addr
	m.Len = uint16(copy(m.data[:], data))
	atomic.StoreUint64(&r.r.head, head+1)
	return true
}

// used returns how many messages wait, for the writer.
func (r Ring) used() uint64 { return r.r.head - atomic.LoadUint64(&r.r.tail) }

// Peek returns the oldest message, or nil. It stays in the ring, and may be read, until Pop.
func (r Ring) Peek() *Message {
	tail := r.r.tail
	if tail == atomic.LoadUint64(&r.r.head) {
		return nil
	}
	return &r.r.slots[tail%ringSlots]
}

// Pop removes the message that Peek returned.
func (r Ring) Pop() { atomic.StoreUint64(&r.r.tail, r.r.tail+1) }

// reset empties the ring. Neither end may be in use.
func (r Ring) reset() { r.r.head, r.r.tail = 0, 0 }

// bucket is a token bucket over the worker's clock.
type bucket struct {
	tokens float64
	at     int64 // nanoseconds
}

// take reports whether one more event is within rate a second, after a burst of at most burst.
func (b *bucket) take(now int64, rate, burst float64) bool {
	if b.at == 0 {
		b.tokens = burst
	} else if now-b.at > 0 {
		b.tokens = min(burst, b.tokens+float64(now-b.at)*rate/1e9)
	}
	if b.at = now; now == 0 {
		b.at = 1
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// takeAbout is take at a random cost, one event on average. Whoever shares the bucket cannot count by it what the others had
// (CVE-2020-25705, "SAD DNS").
func (b *bucket) takeAbout(now int64, rate, burst float64, random uint64) bool {
	if !b.take(now, rate, burst) {
		return false
	}
	b.tokens += 1 - 2*float64(random>>11)/(1<<53)
	return true
}
