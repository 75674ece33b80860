// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// egress finds the port and neighbor of each packet, and drops what does not fit the link. It comes
// before rewrite, so that an ICMP error quotes the packet as its sender knows it; what may be
// fragmented, transmit does.
func (w *Worker) egress(b *Burst) {
	keep := b.live[:0]
	for _, i := range b.live {
		p := &b.Packets[i]
		if p.fragmented && w.refusesFragment(p) {
			w.out(p, b.Port, b.inside, refuse(drop.Fragment))
			continue
		}
		if p.hairpin {
			// Only now does the packet still say who sent it.
			if mtu := w.gen.Beyond(p.remote); len(p.Data)-header.EthernetSize > int(mtu) && (p.family == inet.V6 || p.Data[header.EthernetSize+6]&0x40 != 0) {
				w.answer(p, drop.TooBig, mtu)
				w.out(p, b.Port, b.inside, refuse(drop.TooBig))
				continue
			}
			keep = append(keep, i)
			continue
		}
		if p.act == actOut || p.act == actOutPlain {
			if !w.nextHop(p) {
				w.out(p, b.Port, b.inside, refuse(drop.NoNextHop))
				continue
			}
		} else if p.to.at == attach.None {
			w.out(p, b.Port, b.inside, refuse(drop.NoNextHop))
			continue
		} else if p.neighbor == state.NoNeighbor && p.to.at.Tunnel() {
			h := w.gen.Host(w.vpc(p)+1, p.hop)
			if h == nil || h.Kind != generation.HostInstance {
				w.out(p, b.Port, b.inside, refuse(drop.NoNextHop))
				continue
			}
			p.reach(&w.gen.Instances[h.Index])
		} else if p.neighbor == state.NoNeighbor {
			p.neighbor = w.neighbors.Find(p.to.at, p.hop)
		}
		if mtu := w.gen.Links[p.to.link].MTU; len(p.Data)-header.EthernetSize > int(mtu) {
			if p.family == inet.V6 || p.Data[header.EthernetSize+6]&0x40 != 0 { // DF
				w.answer(p, drop.TooBig, mtu)
				w.out(p, b.Port, b.inside, refuse(drop.TooBig))
				continue
			}
			p.long = true
		}
		keep = append(keep, i)
	}
	b.live = keep
}

// reach notes the way to an instance.
func (p *Packet) reach(in *generation.Instance) {
	f := p.family
	p.to, p.neighbor = way{in.At[f], in.Link[f]}, in.Neighbor[f]
}
