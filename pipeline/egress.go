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
		var mtu uint16
		if p.hairpin { // only now does the packet still say who sent it
			mtu = w.gen.Beyond(p.remote)
		} else if w.findWay(p) {
			mtu = w.gen.Links[p.to.link].MTU
		} else {
			w.out(p, b.Port, b.inside, refuse(drop.NoNextHop))
			continue
		}
		if len(p.Data)-header.EthernetSize > int(mtu) {
			if p.family == inet.V6 || p.Data[header.EthernetSize+6]&0x40 != 0 { // DF
				w.answer(p, drop.TooBig, mtu)
				w.out(p, b.Port, b.inside, refuse(drop.TooBig))
				continue
			}
			p.long = !p.hairpin // what turns back is measured again
		}
		keep = append(keep, i)
	}
	b.live = keep
}

// findWay finds the port and neighbor of a packet, and reports whether there is one. A neighbor
// that is not known yet will be asked for; behind a tunnel nobody is asked, an instance has the
// address or nothing does.
func (w *Worker) findWay(p *Packet) bool {
	switch {
	case p.act == actOut || p.act == actOutPlain:
		return w.nextHop(p)
	case p.to.at == attach.None:
		return false
	case p.neighbor != state.NoNeighbor:
	case p.to.at.Tunnel():
		h := w.gen.Host(w.vpc(p)+1, p.hop)
		if h == nil || h.Kind != generation.HostInstance {
			return false
		}
		p.reach(&w.gen.Instances[h.Index])
	default:
		p.neighbor = w.neighbors.Find(p.to.at, p.hop)
	}
	return true
}

// reach notes the way to an instance.
func (p *Packet) reach(in *generation.Instance) {
	f := p.family
	p.to, p.neighbor = way{in.At[f], in.Link[f]}, in.Neighbor[f]
}
