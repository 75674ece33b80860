// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"sync/atomic"

	"weir/pipeline/attach"
	"weir/pipeline/generation"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// nextHop chooses the way out: a destination in an outside port's own prefix goes there directly;
// everything else is spread by the flow's hash over the live next hops of its family on the ports
// it may use.
func (w *Worker) nextHop(p *Packet) bool {
	g := w.gen
	for i := range g.OnLink {
		if l := &g.OnLink[i]; l.Holds(p.remote) && p.ports>>l.At.Port()&1 != 0 {
			p.to, p.hop = wayOut(l.At), p.remote
			p.neighbor = w.neighbors.Find(l.At, p.remote)
			return true
		}
	}
	l := w.liveHops(p.family)
	n := l.count(p.ports)
	if n == 0 {
		return w.deadHop(p)
	}
	h := l.hop(p.ports, share(p.hash, n))
	p.to, p.hop, p.neighbor = wayOut(h.At), h.Addr, h.Neighbor
	return true
}

// wayOut is the way through an outside port, whose link has its number.
func wayOut(at attach.Word) way { return way{at, uint16(at.Port())} }

// share divides hashes into n equal shares.
func share(hash uint64, n int) int { return int(uint64(uint32(hash>>16)) * uint64(n) >> 32) }

// maxLiveHops bounds how many next hops of a family share the flows.
const maxLiveHops = 64

// liveHops are the resolved next hops of one family. They are found once a burst.
type liveHops struct {
	known bool
	n     int
	ports uint32 // theirs, a bit each
	hops  [maxLiveHops]liveHop
}

type liveHop struct {
	mac uint64
	mtu int
	*generation.Hop
}

// liveHops returns the next hops of a family.
func (w *Worker) liveHops(f inet.Family) *liveHops {
	l := &w.hops[f]
	if !l.known {
		l.find(w, f)
	}
	return l
}

func (l *liveHops) find(w *Worker, f inet.Family) {
	l.known, l.n, l.ports = true, 0, 0
	for i := range w.gen.Hops {
		h := &w.gen.Hops[i]
		if h.Family != uint8(f) || l.n == maxLiveHops {
			continue
		}
		if mac := w.resolved(h.Neighbor); mac != 0 {
			l.hops[l.n] = liveHop{mac, int(w.gen.Ports[h.At.Port()].MTU), h}
			l.n++
			l.ports |= 1 << h.At.Port()
		}
	}
}

// count returns how many of them lie on a set of ports.
func (l *liveHops) count(ports uint32) int {
	if l.ports&^ports == 0 {
		return l.n
	}
	n := 0
	for i := range l.n {
		n += int(ports >> l.hops[i].At.Port() & 1)
	}
	return n
}

// hop returns the n-th of those that lie on a set of ports.
func (l *liveHops) hop(ports uint32, n int) *generation.Hop {
	if l.ports&^ports == 0 {
		return l.hops[n].Hop
	}
	for i := range l.n {
		if ports>>l.hops[i].At.Port()&1 == 0 {
			continue
		}
		if n == 0 {
			return l.hops[i].Hop
		}
		n--
	}
	return nil
}

// deadHop sends a packet towards a next hop that is not resolved: it waits there.
func (w *Worker) deadHop(p *Packet) bool {
	for i := range w.gen.Hops {
		if h := &w.gen.Hops[i]; h.Family == uint8(p.family) && p.ports>>h.At.Port()&1 != 0 {
			p.to, p.hop, p.neighbor = wayOut(h.At), h.Addr, h.Neighbor
			return true
		}
	}
	return false
}

// resolved returns the MAC word of a neighbor, or 0 when its address is not known.
func (w *Worker) resolved(slot uint32) uint64 {
	const known = uint64(state.NeighborReachable) << 48
	if slot == state.NoNeighbor {
		return w.assumed
	}
	word := atomic.LoadUint64(&w.neighbors.Entries[slot].Word)
	if word < known {
		return w.assumed
	}
	return word & state.MACMask
}
