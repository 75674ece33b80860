// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"sync/atomic"

	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/session"
)

// inbound delivers an unsolicited packet to a 1:1 address. It begins a session only where the
// function, applied to the reply, would not give the address it arrived on: 1:1 never needs state
// to be possible.
func (w *Worker) inbound(p *Packet, in *generation.Instance, h *generation.Host) {
	f := p.family
	p.comeIn(in, p.localPort)
	w.counts.stateless++
	r := w.gen.Find(in.Routes[f], p.remote)
	if r == 0 || w.gen.Routes[r-1].Kind != generation.RouteGateway || !begins(p) {
		return
	}
	sel := &w.gen.Selections[in.Selections+2*w.gen.Routes[r-1].Tag+uint32(f)]
	// The reply would leave untranslated: from an address that its receiver has not asked.
	plain := w.gen.Routes[r-1].Plain && !p.turned
	if !plain && (sel.Kind == generation.SelectFloating || sel.Kind == generation.SelectEphemeral) {
		if w.choose(p, in, sel).Addr == p.local {
			return
		}
	}
	if w.beginOutside(p, in, h, session.FromOutside) {
		w.counts.stateless--
	}
}

// comeIn notes that a packet goes to an instance's own address, and to a port of it.
func (p *Packet) comeIn(in *generation.Instance, port uint16) {
	a := in.Addr[p.family]
	p.act, p.newAddr, p.newPort = actIn, a, port
	p.reach(in)
	p.setDeltas(p.local, a, p.localPort, port)
}

// invited delivers a packet to a mapping of an SNAT address, if the filtering lets its sender in
// (RFC 4787 §5), and begins a session. The session holds the mapping from the first packet from
// inside on.
func (w *Worker) invited(p *Packet, h *generation.Host) drop.Reason {
	space, ok := p.portSpace()
	var in *generation.Instance
	if ok {
		var to *generation.Forward
		if to, in = w.gen.ForwardTo(h, space, p.localPort); to != nil {
			return w.forwarded(p, h, in, to)
		}
	}
	piece := p.kind == kindPiece // its first one was let in, perhaps without a session
	if !ok || h.Rules&generation.Overload != 0 || space == session.EchoIdentifiers || !begins(p) && !piece {
		return drop.Unsolicited
	}
	ref := w.mappings.FindOutside(h.Slot, space, p.localPort)
	if ref == session.None {
		return drop.Unsolicited
	}
	m, f := w.mappings.At(ref), p.family
	if in == nil || in.Addr[f] != m.Private || w.gen.VPCs[in.VPC].Slot != m.VPC {
		return drop.Unsolicited
	}
	switch {
	case h.Rules&generation.FilterPort != 0 || h.Rules&generation.FilterNone == 0 && !w.knows(h, p):
		return drop.Filtered
	case p.expired:
		return drop.TTLExceeded
	case p.pinned:
		return drop.Untranslatable
	}
	p.comeIn(in, m.PrivatePort)
	if r := w.gen.Find(in.Routes[f], p.remote); !piece && r != 0 && w.gen.Routes[r-1].Kind == generation.RouteGateway {
		w.beginOutside(p, in, h, session.FromOutside|session.SNAT)
	}
	return drop.Pass
}

// astray reports whether a session that began outside and that nobody has answered has lost the
// mapping that let it in: it holds none, and must not lead past the next owner of the port (RFC
// 4787 REQ-3). A forward needs no mapping.
func (w *Worker) astray(s *session.Session, p *Packet) bool {
	if s.State() != session.Unconfirmed || s.Flags&(session.SNAT|session.Forward) != session.SNAT {
		return false
	}
	h := w.gen.Host(0, s.External)
	space, ok := p.portSpace()
	if h == nil || !ok {
		return true
	}
	ref := w.mappings.FindOutside(h.Slot, space, s.ExternalPort())
	if ref == session.None {
		return true
	}
	m := w.mappings.At(ref)
	return m.Private != s.Private || m.PrivatePort != s.PrivatePort() || m.VPC != s.VPC
}

// forwarded delivers a packet to a port that always leads to an instance, whoever sent it. As with
// a 1:1 address that takes no session; one keeps the reply's address over changes.
func (w *Worker) forwarded(p *Packet, h *generation.Host, in *generation.Instance, to *generation.Forward) drop.Reason {
	switch {
	case p.expired:
		return drop.TTLExceeded
	case p.pinned:
		return drop.Untranslatable
	}
	p.comeIn(in, to.Private)
	w.counts.stateless++
	if r := w.gen.Find(in.Routes[p.family], p.remote); r != 0 && w.gen.Routes[r-1].Kind == generation.RouteGateway && begins(p) &&
		w.beginOutside(p, in, h, session.FromOutside|session.SNAT|session.Forward) {
		w.counts.stateless--
	}
	return drop.Pass
}

// knows reports whether the mapping that p goes to has a session with the remote address of p.
func (w *Worker) knows(h *generation.Host, p *Packet) bool {
	for {
		ref := w.sessions.FindPaired(h.Addr, p.remote, p.localPort, p.proto)
		if ref == session.None {
			return false
		}
		if w.usable(ref, w.sessions.At(ref)) {
			return true
		}
	}
}

// beginOutside makes an unconfirmed session for a packet from outside that is translated already,
// if there may be one.
func (w *Worker) beginOutside(p *Packet, in *generation.Instance, h *generation.Host, flags uint16) bool {
	// The inside key may be taken by a flow that the instance began and that left by another
	// address: that one stays.
	key := session.InsideKey(w.gen.VPCs[in.VPC].Slot, p.newAddr, p.remote, p.newPort, p.remotePort, p.proto)
	if w.liveSession(key) != nil || w.filled(6) {
		return false
	}
	// At most a quarter of what the instance may have, and of what the VPC may: strangers take no
	// limit away from those inside. The oldest of the instance's at this worker gives way. Each
	// worker has its share, so that the remotes of one worker take nothing from those of another.
	v, most := &w.gen.VPCs[in.VPC], quarter(in.Limit)
	all := v.Limit != 0 && atomic.LoadUint32(&w.state.VPCs[v.Slot].Unconfirmed) >= max(1, v.Limit/4)
	mine := &w.unconfirmed[in.Slot]
	if all || most == 0 || atomic.LoadUint32(&w.state.Instances[in.Slot].Unconfirmed) >= most && mine.N >= max(1, most/uint32(w.state.Workers())) {
		if mine.Oldest == session.None {
			return false
		}
		w.end(mine.Oldest)
	}
	f := flow{in: in, private: p.newAddr, privatePort: p.newPort, external: p.local, externalPort: p.localPort, ports: h.Ports, refresh: h.Rules&generation.InboundRefresh != 0, flags: flags, mapping: session.None}
	return w.create(p, &f) == drop.Pass
}

// defaultQuarter is for instances without a limit: a quarter of the limit's default.
const defaultQuarter = 65536 / 4

// quarter is how many unconfirmed sessions an instance of that limit may have.
func quarter(limit uint32) uint32 {
	if limit == 0 {
		return defaultQuarter
	}
	return limit / 4
}
