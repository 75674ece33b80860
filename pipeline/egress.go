// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"sync/atomic"

	"weir/pipeline/inet"
)

// egress finds the port and neighbor of each packet, and drops what does not fit the link. It comes before rewrite, so
// that an ICMP error quotes the packet as its sender knows it; what may be fragmented, transmit does.
func (w *Worker) egress(b *Burst) {
	keep := b.live[:0]
	for _, i := range b.live {
		p := &b.Packets[i]
		if p.fragmented && w.refusesFragment(p) {
			w.drop(p, Fragment)
			continue
		}
		if p.hairpin {
			// Only now does the packet still say who sent it.
			if mtu := w.gen.beyond(p.remote); len(p.Data)-etherLen > int(mtu) && (p.family == inet.V6 || p.Data[etherLen+6]&0x40 != 0) {
				w.answer(b.Port, p, TooBig, mtu)
				w.drop(p, TooBig)
				continue
			}
			keep = append(keep, i)
			continue
		}
		if p.act == actOut || p.act == actOutPlain {
			if !w.nextHop(p) {
				w.drop(p, NoNextHop)
				continue
			}
		} else if p.outPort == noPort {
			w.drop(p, NoNextHop)
			continue
		} else if p.neighbor == NoNeighbor {
			p.neighbor = w.neighbors.Find(p.outPort, p.hop)
		}
		if mtu := w.gen.ports[p.outPort].MTU; len(p.Data)-etherLen > int(mtu) {
			if p.family == inet.V6 || p.Data[etherLen+6]&0x40 != 0 { // DF
				w.answer(b.Port, p, TooBig, mtu)
				w.drop(p, TooBig)
				continue
			}
			p.long = true
		}
		keep = append(keep, i)
	}
	b.live = keep
}

// nextHop chooses the way out: a destination in an outside port's own prefix goes there directly, all else is spread
// by the flow's hash over the live next hops of its family on the ports it may use.
func (w *Worker) nextHop(p *Packet) bool {
	g := w.gen
	for i := range g.onLink {
		if l := &g.onLink[i]; l.holds(p.remote) && p.ports>>l.Port&1 != 0 {
			p.outPort, p.hop = l.Port, p.remote
			p.neighbor = w.neighbors.Find(l.Port, p.remote)
			return true
		}
	}
	l := &w.live[p.family]
	if !l.known {
		l.find(w, p.family)
	}
	n := l.n
	if l.ports&^p.ports != 0 {
		n = 0
		for i := range l.n {
			n += int(p.ports >> l.hops[i].Port & 1)
		}
	}
	if n == 0 {
		return w.deadHop(p)
	}
	n = int(uint64(uint32(p.hash>>16)) * uint64(n) >> 32)
	if l.ports&^p.ports == 0 { // as a rule
		h := l.hops[n&(maxLiveHops-1)]
		p.outPort, p.hop, p.neighbor = h.Port, h.Addr, h.Neighbor
		return true
	}
	for i := range l.n {
		h := l.hops[i]
		if p.ports>>h.Port&1 == 0 {
			continue
		}
		if n == 0 {
			p.outPort, p.hop, p.neighbor = h.Port, h.Addr, h.Neighbor
			return true
		}
		n--
	}
	return false
}

// holds reports whether a lies in the prefix. Of most prefixes, all of IPv4 among them, the upper half is one number.
func (l *prefixRecord) holds(a inet.Addr) bool {
	if l.First.Hi == l.Last.Hi {
		return a.Hi == l.First.Hi && a.Lo-l.First.Lo <= l.Last.Lo-l.First.Lo
	}
	return !a.Less(l.First) && !l.Last.Less(a)
}

// maxLiveHops bounds how many next hops of a family share the flows.
const maxLiveHops = 64

// liveHops are the resolved next hops of one family. They are found once a burst.
type liveHops struct {
	known bool
	n     int
	ports uint32 // theirs, a bit each
	hops  [maxLiveHops]*hopRecord
}

func (l *liveHops) find(w *Worker, f inet.Family) {
	l.known, l.n, l.ports = true, 0, 0
	for i := range w.gen.hops {
		if h := &w.gen.hops[i]; h.Family == uint8(f) && w.resolved(h.Neighbor) != 0 && l.n < maxLiveHops {
			l.hops[l.n] = h
			l.n++
			l.ports |= 1 << h.Port
		}
	}
}

// deadHop sends a packet towards a next hop that is not resolved: it waits there.
func (w *Worker) deadHop(p *Packet) bool {
	for i := range w.gen.hops {
		if h := &w.gen.hops[i]; h.Family == uint8(p.family) && p.ports>>h.Port&1 != 0 {
			p.outPort, p.hop, p.neighbor = h.Port, h.Addr, h.Neighbor
			return true
		}
	}
	return false
}

// resolved returns the MAC word of a neighbor, or 0 when its address is not known.
func (w *Worker) resolved(slot uint32) uint64 {
	const known = uint64(NeighborReachable) << 48
	if slot == NoNeighbor {
		return w.assumed
	}
	word := atomic.LoadUint64(&w.neighbors.entries[slot].word)
	if word < known {
		return w.assumed
	}
	return word & macMask
}
