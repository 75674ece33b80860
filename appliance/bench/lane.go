// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"unsafe"

	"weir/pipeline/drop"
	"weir/pipeline/state"

	"weir/appliance/dataplane"
	"weir/dpdk"
	"weir/pipeline"
	"weir/pipeline/tsc"
)

// lane is one worker of weir bench: the data plane's, without ports, on the common state, its
// flows, and packets in mbufs of a pool. It takes the place of the worker's loop: what a receive
// would bring is made, what a transmit would take is kept for a while, as a device's queue keeps
// it, and freed.
type lane struct {
	worker   dataplane.Worker
	pipe     *pipeline.Worker // the worker's
	counters *state.Counters
	pool     *dpdk.Mempool
	sets     []*flows
	index    int
	workers  int
	order    []flow   // the established flows, shuffled
	strange  []uint32 // hosts of no flow
	next     int
	random   *rand.PCG
	clock    int64   // the pipeline's, at the count epoch
	epoch    uint64  // of the time stamp counter
	nanos    float64 // per count

	sent     [laneRing]dpdk.Mbuf // packets that left, the oldest from tail on
	tail     int
	inFlight int

	wire func(frame []byte, size int) int // what frames inside have before them; nil: nothing

	frames []int // lengths to send, in turn
	frame  int
}

// laneRing is room for what a transmit queue of 1024 keeps, a burst, and one of every other
// worker's. A power of two.
const (
	laneRing  = 8192
	laneQueue = 1024
)

// traffic writes packet j of a burst that comes through a port into b and returns its length.
type traffic func(l *lane, b []byte, port, j int) int

// make fills the receive arrays with n packets, as a device would.
func (l *lane) make(port, n int, from traffic) error {
	l.trim(n)
	rx := &l.worker.Rx
	if err := l.pool.Alloc(rx.Mbufs[:n]); err != nil {
		return err
	}
	rx.N = n
	for j, m := range rx.Mbufs[:n] {
		b := m.Bytes()
		b = b[:cap(b)]
		var size int
		if l.wire == nil || port != 0 {
			size = from(l, b, port, j)
		} else {
			size = l.wire(b, from(l, b[wireRoom:], port, j))
		}
		rx.Data[j] = unsafe.Pointer(unsafe.SliceData(b))
		rx.Len[j], rx.Segs[j], rx.PktLen[j] = uint16(size), 1, uint32(size)
		m.SetLen(size)
	}
	return nil
}

// trim frees what there is no room for once n more packets are on their way.
func (l *lane) trim(n int) { l.release(l.inFlight + n - laneQueue) }

// release frees the n packets that left first.
func (l *lane) release(n int) {
	for n > 0 {
		at := l.tail % laneRing
		k := min(n, laneRing-at)
		dpdk.Free(l.sent[at : at+k])
		l.tail += k
		l.inFlight -= k
		n -= k
	}
}

// process is the worker's part between receive and transmit, all that Go does for a packet: what it
// returns are the counts that it took.
func (l *lane) process(port int) uint64 {
	before := tsc.Read()
	l.worker.Enter(port)
	l.collect()
	l.adopt()
	return tsc.Read() - before
}

// adopt does a burst of what each other worker handed over, and returns how many packets that were.
func (l *lane) adopt() (n int) {
	for from := range l.workers {
		if from != l.index {
			n += l.pipe.Adopt(from)
			l.collect()
		}
	}
	return n
}

// collect takes what is to be sent and freed.
func (l *lane) collect() {
	at := l.tail + l.inFlight
	for p := range benchMACs {
		q := &l.pipe.Out[p]
		if q.N == 0 {
			continue
		}
		for i := range q.N {
			m := dpdk.Mbuf(q.Handles[i])
			m.SetBytes(q.Frames[i])
			l.sent[at%laneRing] = m
			at++
		}
		l.pipe.Sent(p, q.N)
	}
	for _, h := range l.pipe.Done {
		l.sent[at%laneRing] = dpdk.Mbuf(h)
		at++
	}
	l.pipe.Done = l.pipe.Done[:0]
	l.inFlight = at - l.tail
}

// tick tells the pipeline the time.
func (l *lane) tick() {
	l.pipe.SetClock(l.clock + int64(float64(tsc.Read()-l.epoch)*l.nanos))
}

// jump moves the pipeline's clock on.
func (l *lane) jump(nanos int64) {
	l.clock += nanos
	l.tick()
}

// size is the length of the next frame.
func (l *lane) size() int {
	if l.frame++; l.frame >= len(l.frames) {
		l.frame = 0
	}
	return l.frames[l.frame]
}

// established is the next of the shuffled flows.
func (l *lane) established() flow {
	if l.next++; l.next >= len(l.order) {
		l.next = 0
	}
	return l.order[l.next]
}

// begin sends the first packets of the flows of set, all of whose numbers are below n, and notes
// them in order together with the ports that they were given. On the way it checks that each begins
// a session.
func (l *lane) begin(set, from, n int) error {
	f := l.sets[set]
	for at := from; at < n; {
		count := min(dataplane.BurstSize, n-at)
		l.tick()
		if err := l.make(0, count, func(_ *lane, b []byte, port, j int) int {
			return f.put(b, flow{number: uint32(at + j)}, port, 64, tcpSYN)
		}); err != nil {
			return err
		}
		created, first := l.counters.SessionsCreated, l.tail+l.inFlight
		l.process(0)
		if got := l.counters.SessionsCreated - created; got != uint64(count) {
			return fmt.Errorf("only %d of %d packets created a session; dropped: %v", got, count, drops(l.counters))
		}
		for j := range count {
			// What left is in the order of what came: nothing was dropped.
			frame := l.sent[(first+j)%laneRing].Bytes()
			port := uint16(frame[f.headerLen()-8])<<8 | uint16(frame[f.headerLen()-7])
			if f.tcp {
				port = uint16(frame[f.headerLen()-20])<<8 | uint16(frame[f.headerLen()-19])
			}
			l.order = append(l.order, flow{number: uint32(at + j), port: port, set: uint8(set)})
		}
		if f.tcp { // the rest of the handshake
			begun := l.order[len(l.order)-count:]
			for _, next := range []struct {
				port  int
				flags byte
			}{{1, tcpSYN | tcpACK}, {0, tcpACK}} {
				if err := l.make(next.port, count, func(_ *lane, b []byte, port, j int) int {
					return f.put(b, begun[j], port, 64, next.flags)
				}); err != nil {
					return err
				}
				l.process(next.port)
			}
		}
		at += count
	}
	return nil
}

// crowd is begin for ranges that become so full that not every search for a port finds one: a flow
// tries until it is in. The ports are not noted.
func (l *lane) crowd(n int) error {
	f := l.sets[0]
	for at := 0; at < n; {
		count := min(dataplane.BurstSize, n-at)
		want := l.counters.SessionsCreated + uint64(count)
		for try := 0; l.counters.SessionsCreated < want; try++ {
			if try == 10000 {
				return fmt.Errorf("only %d of %d sessions fit into the ranges; dropped: %v", at, n, drops(l.counters))
			}
			if try > 0 {
				l.jump(20e6) // a search that found nothing is not repeated for a while
			} else {
				l.tick()
			}
			if err := l.make(0, count, func(_ *lane, b []byte, port, j int) int {
				return f.put(b, flow{number: uint32(at + j)}, port, 64, 0)
			}); err != nil {
				return err
			}
			l.process(0)
		}
		for j := range count {
			l.order = append(l.order, flow{number: uint32(at + j)})
		}
		at += count
	}
	return nil
}

func (l *lane) shuffle() {
	rand.New(l.random).Shuffle(len(l.order), func(i, j int) { l.order[i], l.order[j] = l.order[j], l.order[i] })
}

// close gives everything back.
func (l *lane) close() {
	l.pipe.Abandon()
	for _, h := range l.pipe.Done {
		dpdk.Free([]dpdk.Mbuf{dpdk.Mbuf(h)})
	}
	l.pipe.Done = l.pipe.Done[:0]
	l.release(l.inFlight)
}

// drops lists what was dropped, by reason.
func drops(c *state.Counters) map[string]uint64 {
	m := map[string]uint64{}
	for r, n := range c.Dropped {
		if n != 0 {
			m[drop.Reason(r).String()] = n
		}
	}
	return m
}

// histogram counts bursts by what they took, in steps of a thirty-second part.
type histogram [64 * 32]uint32

func (h *histogram) add(x uint64) { h[bucketOf(x)]++ }

func bucketOf(x uint64) int {
	if x < 32 {
		return int(x)
	}
	shift := bits.Len64(x) - 6
	return (shift+1)*32 + int(x>>shift) - 32
}

// value is the middle of a bucket.
func bucketValue(i int) float64 {
	if i < 32 {
		return float64(i)
	}
	shift := i/32 - 1
	return (float64(i%32) + 32.5) * float64(uint64(1)<<shift)
}

// quantile returns the value that a share q of what was counted does not exceed; nothing counted
// gives 0.
func (h *histogram) quantile(q float64) float64 {
	var all, sum uint64
	for _, n := range h {
		all += uint64(n)
	}
	want := uint64(q * float64(all))
	for i, n := range h {
		if sum += uint64(n); n != 0 && sum >= max(want, 1) {
			return bucketValue(i)
		}
	}
	return 0
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o {
		h[i] += n
	}
}

// lineup lets several threads come to one moment together.
type lineup struct{ missing atomic.Int64 }

// arrive returns once all have, and calls meanwhile until then.
func (l *lineup) arrive(meanwhile func()) {
	l.missing.Add(-1)
	for l.missing.Load() > 0 {
		meanwhile()
	}
}
