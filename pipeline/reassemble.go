// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
)

// reassemble gives later fragments the ports of the first. Those whose first comes in the same
// burst, or later, leave the burst.
func (w *Worker) reassemble(b *Burst) {
	w.pieces.call++
	w.pieces.later.Port, w.pieces.later.inside = b.Port, b.inside
	w.ageFragments()
	keep := b.live[:0]
	for _, i := range b.live {
		p := &b.Packets[i]
		if !p.fragmented {
			keep = append(keep, i)
			continue
		}
		switch v := w.reassembleOne(b, p); v {
		case goesOn:
			keep = append(keep, i)
		case follows:
		default:
			w.out(p, b.Port, b.inside, v)
		}
	}
	b.live = keep
}

func (w *Worker) reassembleOne(b *Burst, p *Packet) verdict {
	g := w.gen
	if !b.inside {
		if h := g.Host(0, p.local); h != nil && h.Rules&generation.DropFragments != 0 {
			return refuse(drop.Fragment)
		}
	}
	if p.family == inet.V4 && p.proto != header.ProtocolTCP && p.proto != header.ProtocolUDP && p.proto != header.ProtocolICMP {
		return goesOn // no ports anywhere
	}
	t := w.pieces.side(b.inside)
	key := datagramKey{local: p.local, remote: p.remote, id: p.id}
	if p.family == inet.V4 {
		key.proto = p.proto
	}
	var from sender
	if b.inside {
		if p.from.Index == generation.Unattached {
			return goesOn // look-up drops it
		}
		var spoofed drop.Reason
		if from, spoofed = w.sender(p); spoofed != drop.Pass {
			return goesOn // route drops it
		}
		key.vpc = w.vpcSlot(p)
	}
	hash := w.pieces.hash(&key)
	i := t.find(&key, hash)
	if i == 0 {
		tracked, plain := w.fragmentWay(b, p, &from)
		if !tracked {
			return goesOn // deliver or route says why it goes no further
		}
		plain = plain || p.family == inet.V6 && !mayHavePorts(p.proto)
		o := uint16(key.vpc % holders)
		if !b.inside {
			o = uint16(inet.Hash(w.pieces.secret, 0, p.local) % holders)
		}
		class := uint8(following)
		if p.kind == kindPiece && !plain {
			class = waiting
		}
		if i = w.newDatagram(t, &key, hash, o, class); i == 0 {
			return refuse(drop.FragmentLimit)
		}
		t.datagrams[i].proto = p.proto
	}
	d := &t.datagrams[i]
	d.last = w.pieces.call
	if d.dead {
		return refuse(drop.FragmentOverlap)
	}
	switch v := d.add(p); v {
	case goesOn:
	case duplicate:
		return refuse(drop.FragmentOverlap)
	case refuse(drop.FragmentOverlap):
		w.kill(t, i)
		return v
	default:
		return v
	}
	if p.kind != kindPiece {
		d.began, d.first = true, w.pieces.call
		d.proto, d.localPort, d.remotePort = p.proto, p.localPort, p.remotePort
		if p.kind == kindTCP {
			d.segment = p.segment()
			d.segment.end -= uint32(p.size)
		}
		if d.class == waiting && !w.resume(t, i) {
			return refuse(drop.FragmentLimit)
		}
		p.datagram = d
		w.completed(d)
		return goesOn
	}
	p.datagram = d
	if d.class == waiting {
		return w.wait(t, i, b.Port, p)
	}
	w.completed(d)
	p.proto, p.localPort, p.remotePort = d.proto, d.localPort, d.remotePort
	switch {
	case d.refusal != drop.Pass:
		return refuse(d.refusal)
	case d.began && d.first == w.pieces.call: // whose end is not known yet
		w.pieces.followers = append(w.pieces.followers, followingPiece{packet: p})
		return follows
	}
	return goesOn
}

// refusesFragment reports whether the pool of the external address that a fragment leaves from, or
// has turned back to, takes none.
func (w *Worker) refusesFragment(p *Packet) bool {
	a := p.local
	switch {
	case p.act == actOut:
		a = p.newAddr
	case !p.turned:
		return false
	}
	h := w.gen.Host(0, a)
	return h != nil && h.Rules&generation.DropFragments != 0
}

// fragmentWay says of a fragment whether its datagram is tracked, and whether its way depends on no
// port: attached prefixes and what stays in the VPC. from sent it, if it is from inside. What goes
// no further is not tracked.
func (w *Worker) fragmentWay(b *Burst, p *Packet, from *sender) (tracked, plain bool) {
	g := w.gen
	if !b.inside {
		h := g.Host(0, p.local)
		if h == nil {
			attached := g.Find(generation.AttachedTables+uint32(p.family), p.local) != 0
			if in, _ := g.PrivateOwner(p.local); in != nil {
				attached = g.Partner(in, p.remote)
			}
			return attached, attached
		}
		return h.Kind != generation.HostOwn, false
	}
	v := w.vpc(p)
	if to := g.Host(v+1, p.remote); to != nil && to.Kind == generation.HostOwn {
		return false, false
	}
	r := g.Find(from.in.Routes[p.family], p.remote)
	if r == 0 || g.Routes[r-1].Kind == generation.RouteDrop {
		return false, false
	}
	rt := &g.Routes[r-1]
	return true, rt.Kind == generation.RouteInternal || rt.Plain && !g.Own(p.remote) || from.attached != nil && g.Eligible(from.attached.Set, rt.Gateway)
}

// mayHavePorts reports whether a protocol after an IPv6 Fragment header has ports, or may be
// followed by one that has.
func mayHavePorts(proto uint8) bool {
	switch proto {
	case header.ProtocolTCP, header.ProtocolUDP, header.ProtocolICMPv6, header.ProtocolHopByHop, header.ProtocolRouting, header.ProtocolDestination, header.ProtocolAH,
		header.ProtocolMobility, header.ProtocolHIP, header.ProtocolShim6, header.ProtocolExperiment1, header.ProtocolExperiment2:
		return true
	}
	return false
}
