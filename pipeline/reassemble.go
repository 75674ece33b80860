// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// reassemble gives later fragments the ports of the first. Those whose first comes in the same burst, or later, leave the burst.
func (w *Worker) reassemble(b *Burst) {
	if !b.fragments {
		return
	}
	w.pieces.call++
	w.pieces.behind.Port, w.pieces.behind.inside = b.Port, b.inside
	w.ageFragments()
	keep := b.live[:0]
	for _, i := range b.live {
		p := &b.Packets[i]
		if !p.fragmented || p.turned { // what turned back knows its ports
			keep = append(keep, i)
			continue
		}
		switch r := w.reassembleOne(b, p); r {
		case drop.Pass:
			keep = append(keep, i)
		case waits:
		default:
			w.drop(p, r)
		}
	}
	b.live = keep
}

// waits is, among reassembleOne's results, a piece that goes on behind its first one, or waits for it.
const waits = drop.NumReasons

func (w *Worker) reassembleOne(b *Burst, p *Packet) drop.Reason {
	g := w.gen
	if !b.inside {
		if h := g.Host(0, p.local); h != nil && h.Rules&generation.DropFragments != 0 {
			return drop.Fragment
		}
	}
	if p.family == inet.V4 && p.proto != header.ProtocolTCP && p.proto != header.ProtocolUDP && p.proto != header.ProtocolICMP {
		return drop.Pass // no ports anywhere
	}
	t := w.pieces.side(b.inside)
	key := datagramKey{local: p.local, remote: p.remote, id: p.id}
	if p.family == inet.V4 {
		key.proto = p.proto
	}
	if b.inside {
		v := g.Ports[b.Port].VPC
		if v < 0 {
			return drop.Pass // look-up drops it
		}
		key.vpc = g.VPCs[v].Slot
	}
	hash := w.pieces.hash(&key)
	i := t.find(&key, hash)
	if i == 0 {
		tracked, plain := w.fragmentWay(b, p)
		if !tracked {
			return drop.Pass // deliver or route says why it goes no further
		}
		plain = plain || p.family == inet.V6 && !mayHavePorts(p.proto)
		o := uint16(key.vpc % owners)
		if !b.inside {
			o = uint16(inet.Hash(w.pieces.secret, 0, p.local) % owners)
		}
		class := uint8(following)
		if p.kind == kindPiece && !plain {
			class = waiting
		}
		if i = w.newDatagram(t, &key, hash, o, class); i == 0 {
			return drop.FragmentLimit
		}
		t.datagrams[i].proto = p.proto
	}
	d := &t.datagrams[i]
	d.last = w.pieces.call
	if d.dead {
		return drop.FragmentOverlap
	}
	switch r := d.add(p); {
	case r == drop.FragmentOverlap:
		w.kill(t, i)
		return r
	case r == duplicate:
		return drop.FragmentOverlap
	case r != drop.Pass:
		return r
	}
	if p.kind != kindPiece {
		d.began, d.first = true, w.pieces.call
		d.proto, d.localPort, d.remotePort = p.proto, p.localPort, p.remotePort
		if p.kind == kindTCP {
			d.segment = p.segment()
			d.segment.end -= uint32(p.size)
		}
		if d.class == waiting && !w.release(t, i) {
			return drop.FragmentLimit
		}
		p.datagram = d
		w.completed(d)
		return drop.Pass
	}
	p.datagram = d
	if d.class == waiting {
		return w.wait(t, i, p)
	}
	w.completed(d)
	p.proto, p.localPort, p.remotePort = d.proto, d.localPort, d.remotePort
	switch {
	case d.verdict != drop.Pass:
		return d.verdict
	case d.began && d.first == w.pieces.call: // whose verdict is not known yet
		w.pieces.followers = append(w.pieces.followers, followingPiece{packet: p})
		return waits
	}
	return drop.Pass
}

// refusesFragment reports whether the pool of the external address that a fragment leaves by, or has turned back to, takes none.
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

// fragmentWay says of a fragment whether its datagram is tracked, and whether its way depends on no port: attached
// prefixes and what stays in the VPC. What goes no further is not tracked.
func (w *Worker) fragmentWay(b *Burst, p *Packet) (tracked, plain bool) {
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
	v := uint32(g.Ports[b.Port].VPC)
	if to := g.Host(v+1, p.remote); to != nil && to.Kind == generation.HostOwn {
		return false, false
	}
	var in *generation.Instance
	if from := g.Host(v+1, p.local); from != nil && from.Kind == generation.HostInstance {
		in = &g.Instances[from.Index]
	}
	var attached *generation.Attached
	if r := g.Find(g.VPCs[v].Sources[p.family], p.local); r != 0 {
		s := &g.Sources[r-1]
		if s.Kind == generation.SourceAttached && (in == nil || in == &g.Instances[s.Instance]) {
			attached = &g.Attached[s.Attached]
		}
		if in == nil {
			in = &g.Instances[s.Instance]
		}
	}
	if in == nil {
		return false, false
	}
	r := g.Find(in.Routes[p.family], p.remote)
	if r == 0 || g.Routes[r-1].Kind == generation.RouteDrop {
		return false, false
	}
	rt := &g.Routes[r-1]
	return true, rt.Kind == generation.RouteInternal || rt.Plain && !g.Own(p.remote) || attached != nil && g.Eligible(attached.Set, rt.Gateway)
}

// mayHavePorts reports whether a protocol behind an IPv6 Fragment header has ports, or may be followed by one that has.
func mayHavePorts(proto uint8) bool {
	switch proto {
	case header.ProtocolTCP, header.ProtocolUDP, header.ProtocolICMPv6, header.ProtocolHopByHop, header.ProtocolRouting, header.ProtocolDestination, header.ProtocolAH,
		header.ProtocolMobility, header.ProtocolHIP, header.ProtocolShim6, header.ProtocolExperiment1, header.ProtocolExperiment2:
		return true
	}
	return false
}

// follow takes the pieces whose first one has just gone ahead, or has been dropped, its way.
func (w *Worker) follow(first *Burst) {
	if !first.fragments {
		return
	}
	v := &w.pieces
	b := &v.behind
	inside := b.inside
	side := v.side(inside)
	for n := 0; n < len(v.followers); {
		b.N = 0
		for ; n < len(v.followers) && b.N < MaxBurst; n++ {
			f := v.followers[n]
			if r := f.packet.datagram.verdict; r != drop.Pass {
				w.drop(f.packet, r)
			} else {
				b.Packets[b.N], b.index[b.N] = *f.packet, uint8(b.N)
				b.N++
			}
			if f.slot != 0 {
				side.vacate(f.slot)
			}
		}
		b.live, b.back, b.inside = b.index[:b.N], b.turned[:0], inside
		w.lookupAll(b)
		w.forward(b)
		w.turnBack(b)
	}
	v.followers = v.followers[:0]
	for _, d := range v.complete {
		if d.proto == header.ProtocolTCP && d.verdict == drop.Pass && !d.dead {
			w.trackWhole(d, inside)
		}
		side.forget(side.find(&d.key, d.hash))
	}
	v.complete = v.complete[:0]
}

// trackWhole tracks a TCP segment once all its pieces have passed: the first has counted, as any segment, with its own bytes only.
// Who sees nothing of a connection gains nothing by pieces, since the whole is held against the same numbers again.
func (w *Worker) trackWhole(d *datagram, inside bool) {
	g := d.segment
	g.end += d.total
	k := &d.key
	if !inside {
		if s := w.liveSession(session.OutsideKey(k.local, k.remote, d.localPort, d.remotePort, header.ProtocolTCP)); s != nil {
			w.turnTCP(s, &g, false)
		}
		return
	}
	s := w.liveSession(session.InsideKey(k.vpc, k.local, k.remote, d.localPort, d.remotePort, header.ProtocolTCP))
	if s == nil {
		return
	}
	w.turnTCP(s, &g, true)
	if s.Flags&session.Hairpin != 0 { // and it has come in by another session, if that is this worker's
		if s = w.liveSession(session.OutsideKey(s.Remote, s.External, s.RemotePort(), s.ExternalPort(), header.ProtocolTCP)); s != nil {
			w.turnTCP(s, &g, false)
		}
	}
}

// condemn remembers why the first piece of a datagram was dropped: the others share its fate.
func (p *Packet) condemn(r drop.Reason) {
	if p.datagram != nil && p.kind != kindPiece {
		p.datagram.verdict = r
	}
}
