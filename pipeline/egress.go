// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"sync/atomic"

	"weir/pipeline/header"
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
			if mtu := w.gen.beyond(p.remote); len(p.Data)-header.EthernetSize > int(mtu) && (p.family == inet.V6 || p.Data[header.EthernetSize+6]&0x40 != 0) {
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
		if mtu := w.gen.ports[p.outPort].MTU; len(p.Data)-header.EthernetSize > int(mtu) {
			if p.family == inet.V6 || p.Data[header.EthernetSize+6]&0x40 != 0 { // DF
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
	l := w.liveHops(p.family)
	n := l.count(p.ports)
	if n == 0 {
		return w.deadHop(p)
	}
	h := l.hop(p.ports, share(p.hash, n))
	p.outPort, p.hop, p.neighbor = h.Port, h.Addr, h.Neighbor
	return true
}

// share divides hashes into n equal shares.
func share(hash uint64, n int) int { return int(uint64(uint32(hash>>16)) * uint64(n) >> 32) }

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
	hops  [maxLiveHops]liveHop
}

type liveHop struct {
	mac uint64
	*hopRecord
}

// liveHops returns the next hops of a family.
func (w *Worker) liveHops(f inet.Family) *liveHops {
	l := &w.live[f]
	if !l.known {
		l.find(w, f)
	}
	return l
}

func (l *liveHops) find(w *Worker, f inet.Family) {
	l.known, l.n, l.ports = true, 0, 0
	for i := range w.gen.hops {
		h := &w.gen.hops[i]
		if h.Family != uint8(f) || l.n == maxLiveHops {
			continue
		}
		if mac := w.resolved(h.Neighbor); mac != 0 {
			l.hops[l.n] = liveHop{mac, h}
			l.n++
			l.ports |= 1 << h.Port
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
		n += int(ports >> l.hops[i].Port & 1)
	}
	return n
}

// hop returns the n-th of those that lie on a set of ports.
func (l *liveHops) hop(ports uint32, n int) *hopRecord {
	if l.ports&^ports == 0 {
		return l.hops[n].hopRecord
	}
	for i := range l.n {
		if ports>>l.hops[i].Port&1 == 0 {
			continue
		}
		if n == 0 {
			return l.hops[i].hopRecord
		}
		n--
	}
	return nil
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
