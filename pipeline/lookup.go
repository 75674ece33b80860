// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"sync/atomic"

	"weir/config"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// lookup asks for the sessions of the packets from the first-th live one on: first for the buckets that they are found by, and for the
// sessions of those a step before, whose buckets should have come. Packets from a port that no VPC is attached to end here.
func (w *Worker) lookup(b *Burst, first int) {
	live := b.live[first:]
	vpc := uint32(0)
	if b.inside {
		v := w.gen.ports[b.Port].VPC
		if v < 0 {
			for _, i := range live {
				w.drop(&b.Packets[i], AntiSpoof)
			}
			b.live = b.live[:first]
			return
		}
		vpc = w.gen.vpcs[v].Slot
	}
	keys := w.batch.Keys[first:][:len(live)]
	for k, i := range live {
		p := &b.Packets[i]
		if b.inside {
			keys[k].SetInside(vpc, p.local, p.remote, p.localPort, p.remotePort, p.proto)
		} else {
			keys[k].SetOutside(p.local, p.remote, p.localPort, p.remotePort, p.proto)
		}
	}
	w.sessions.Hash(&w.batch, len(b.live))
	w.sessions.Match(&w.batch, max(0, first-step))
}

// apply gives those packets of a run that have a live session their rewriting: they need neither route nor select. act stays actNone
// for the others. The run begins with the first-th packet of the look-up.
func (w *Worker) apply(b *Burst, first int) {
	for k, i := range b.live {
		p := &b.Packets[i]
		p.hash = w.batch.Hashes[first+k]
		ref := w.sessions.Found(&w.batch, first+k)
		if ref == session.None || p.stray() {
			continue
		}
		s := w.sessions.At(ref)
		if !w.usable(ref, s) {
			continue
		}
		switch {
		case !b.inside:
			if !p.uninvited(s) {
				w.fromOutside(s, p)
			}
		case s.State() == session.Unconfirmed && ((p.kind == kindTCP || p.kind == kindEchoRequest) && begins(p) || !w.confirm(ref, s, p)):
			// No reply, but a beginning: whoever sent the packet from outside does not choose its address. Or the mapping that it went to
			// is gone.
			w.end(ref)
		default:
			w.fromInside(s, p)
		}
	}
}

func (p *Packet) insideKey(vpc uint32) session.Key {
	return session.InsideKey(vpc, p.local, p.remote, p.localPort, p.remotePort, p.proto)
}

func (p *Packet) outsideKey() session.Key {
	return session.OutsideKey(p.local, p.remote, p.localPort, p.remotePort, p.proto)
}

// stray reports whether a packet takes no part in sessions: ICMP other than queries, and what goes no further.
func (p *Packet) stray() bool { return p.kind >= kindError || p.expired || p.pinned }

// uninvited reports whether a packet from outside is none of its session's: a ping to an identifier that is mapped for replies to the
// instance's own, or one that only claims to come from an external address of weir's own, whose packets turn back and never come by a port.
func (p *Packet) uninvited(s *session.Session) bool {
	return p.kind == kindEchoRequest && s.Flags&session.SNAT != 0 || p.turned != (s.Flags&session.Hairpin != 0)
}

// late finds the session of a packet that began after the batch was looked up: with an earlier packet of one burst.
func (w *Worker) late(k session.Key, p *Packet) (*session.Session, bool) {
	if !w.created || p.stray() {
		return nil, false
	}
	ref := w.sessions.Find(&k)
	if ref == session.None || !w.usable(ref, w.sessions.At(ref)) {
		return nil, false
	}
	return w.sessions.At(ref), true
}

// usable ends a session that is over, by time or by a newer generation, and reports whether it lives.
func (w *Worker) usable(ref uint32, s *session.Session) bool {
	// The check comes first: Timer is an index into the generation's own table.
	if s.Generation != uint32(w.gen.Number) && !w.gen.recheck(s, w.tick) || w.over(s) {
		w.end(ref)
		return false
	}
	return true
}

// over reports whether the time of a session is over.
func (w *Worker) over(s *session.Session) bool {
	limit := w.timeouts[s.State()%session.NumStates]
	if s.Timer != 0 && s.State() == session.UDP {
		limit = w.gen.h.UDPTimeouts[s.Timer]
	}
	return w.tick-s.Last > limit || s.Flags&session.Draining != 0 && int32(w.tick-s.Drain) >= 0
}

// Under pressure from three quarters of the table on, and until it is down to five eighths.
const (
	pressFrom = 6 // eighths
	pressTo   = 5
)

// pressedRest is how long a port rests, in milliseconds, while the table of mappings is as full: ranges are an instance's own, so that RFC 6888
// REQ-8 asks for no rest, and a full table would refuse everybody.
const pressedRest = 1000

// weigh decides whether what has not been answered ends early. Established sessions never do.
func (w *Worker) weigh() {
	switch {
	case w.filled(pressFrom):
		w.pressed = 1
	case !w.filled(pressTo):
		w.pressed = 0
	}
	w.timeouts = &w.gen.h.Timeouts[w.pressed]
	w.counters.Pressed = uint64(w.pressed)
}

// end removes a session and everything that counts it.
func (w *Worker) end(ref uint32) {
	s := w.sessions.At(ref)
	if s.State() == session.Unconfirmed {
		w.confirmed(s)
	}
	if s.Mapping != session.None {
		w.mappings.Release(s.Mapping, w.tick)
	}
	w.state.release(s.VPC, s.Instance)
	w.sessions.Remove(ref)
	w.counters.SessionsEnded++
}

// recheck holds a session against a newer generation (design 2.5): it ends when its remote address has no route to a
// gateway any more, or when its address, or port within its range, is not the instance's any more. When its address is
// merely not eligible for the route's gateway any more, sessions.on_move decides; a session that began from outside
// replies from the address it arrived on, whichever gateway the route names.
func (g *Generation) recheck(s *session.Session, tick uint32) bool {
	h := g.host(0, s.External)
	if h == nil || g.own(s.Remote) != (s.Flags&session.Hairpin != 0) {
		return false
	}
	if to := g.host(0, s.Remote); to != nil && to.Kind == hostOwn { // weir's own serves nobody inside
		return false
	}
	index := h.Index
	switch {
	case s.Flags&session.SNAT == 0 && (h.Kind == hostFloating || h.Kind == hostEphemeral):
	case s.Flags&session.SNAT != 0 && h.Kind == hostSNAT:
		var ok bool
		if index, ok = g.portOwner(h, s.ExternalPort()); !ok {
			return false
		}
	default:
		return false
	}
	in := &g.instances[index]
	f := s.Private.Family()
	if in.Slot != s.Instance || g.vpcs[in.VPC].Slot != s.VPC || in.Addr[f] != s.Private {
		return false
	}
	r := g.find(in.Routes[f], s.Remote)
	if r == 0 || g.routes[r-1].Kind != routeGateway {
		return false
	}
	switch {
	case s.Flags&session.FromOutside != 0 || g.eligible(h.Set, g.routes[r-1].Gateway) || g.h.OnMove == uint8(config.OnMoveKeep):
		s.Flags &^= session.Draining
	case g.h.OnMove == uint8(config.OnMoveCut):
		return false
	case s.Flags&session.Draining == 0:
		s.Flags |= session.Draining
		if s.Drain = tick + g.h.Drain; g.h.Drain == 0 {
			return false
		}
	}
	g.adjust(s, in, h.Ports, s.Proto(), s.RemotePort())
	return true
}

// adjust notes in a session, of instance in, what only the generation decides.
func (g *Generation) adjust(s *session.Session, in *instanceRecord, ports uint32, proto uint8, remotePort uint16) {
	f := s.Remote.Family()
	s.Neighbor, s.InPort, s.Ports, s.Timer = in.Neighbor[f], in.Port[f], ports, g.h.timer(proto, remotePort)
	s.Flags &^= session.OnLink
	for i := range g.onLink {
		if g.onLink[i].holds(s.Remote) {
			s.Flags |= session.OnLink
		}
	}
	s.Generation = uint32(g.Number)
}

// own reports whether a is one of weir's external addresses: its own, an instance's, or in an attached prefix.
func (g *Generation) own(a inet.Addr) bool {
	return g.host(0, a) != nil || g.find(attachedTables+uint32(a.Family()), a) != 0
}

// portOwner returns the instance whose range of the SNAT address h holds port.
func (g *Generation) portOwner(h *host, port uint16) (uint32, bool) {
	list := g.snat[h.Index : h.Index+uint32(h.Ranges)]
	lo, hi := 0, len(list)
	for lo < hi { // the last range that starts at or below port is lo-1
		if mid := int(uint(lo+hi) >> 1); list[mid].First > port {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	if lo == 0 || list[lo-1].Last < port {
		return 0, false
	}
	return list[lo-1].Instance, true
}

// fromInside applies a session to a packet from its instance. Only these refresh it (RFC 4787 REQ-6).
func (w *Worker) fromInside(s *session.Session, p *Packet) {
	if p.tcpFlags&tcpRST == 0 { // which may answer what came from outside (RFC 7857 §8)
		s.Last = w.tick
	}
	if p.kind == kindTCP {
		w.trackTCP(s, p, true)
	}
	p.act, p.hairpin = actOut, s.Flags&session.Hairpin != 0
	p.newAddr, p.newPort, p.ports, p.shared = s.External, s.ExternalPort(), s.Ports, s.Flags&session.SNAT != 0
	p.delta, p.headerDelta = s.Delta, s.HeaderDelta
}

// confirm lets the first packet from inside, but a reset, confirm a session that began outside. Through SNAT it holds the mapping
// from here on; false: that is gone.
func (w *Worker) confirm(ref uint32, s *session.Session, p *Packet) bool {
	if p.tcpFlags&tcpRST != 0 || p.kind == kindPiece {
		return true
	}
	mapping := session.None
	if s.Flags&session.SNAT != 0 {
		h := w.gen.host(0, s.External)
		space, ok := p.portSpace()
		if h == nil || !ok {
			return false
		}
		port := session.PortRange{First: s.ExternalPort(), Last: s.ExternalPort()}
		if mapping = w.mappings.Hold(s.VPC, s.Private, s.PrivatePort(), space, h.Slot, []session.PortRange{port}); mapping == session.None {
			return false
		}
	}
	s.Mapping = mapping // before the state: an unconfirmed session's is nothing after a crash
	w.confirmed(s)
	s.SetState(firstState(p.kind))
	if mapping != session.None {
		w.sessions.Pair(ref, s)
	}
	return true
}

// fromOutside applies a session to a packet from the Internet.
func (w *Worker) fromOutside(s *session.Session, p *Packet) {
	if p.kind == kindTCP && !w.trackTCP(s, p, false) {
		p.act = actReset
		return
	}
	p.act = actIn
	p.newAddr, p.newPort = s.Private, s.PrivatePort()
	p.delta, p.headerDelta = s.Delta.Invert(), s.HeaderDelta.Invert()
	p.outPort, p.neighbor = s.InPort, s.Neighbor
}

// firstState is the state of a session's first packet from inside.
func firstState(k kind) session.State {
	switch k {
	case kindTCP:
		return session.TCPOpening
	case kindUDP:
		return session.UDP
	case kindEchoRequest, kindEchoReply:
		return session.ICMP
	}
	return session.Other
}

// Expire ends the sessions among the next n that have been idle for too long or that a newer generation ends, and
// returns how many. Called every turn, it walks the table in slices. The first worker also lets go of mappings.
func (w *Worker) Expire(n int) int {
	ended := 0
	w.weigh()
	for range n {
		s := w.sessions.At(w.expireAt)
		if s.State() != session.Free && !w.usable(w.expireAt, s) {
			ended++
		}
		if w.expireAt++; w.expireAt == uint32(w.sessions.Capacity()) {
			w.expireAt = 0
		}
	}
	if ended > 0 {
		w.counters.Sessions = uint64(w.sessions.Len())
	}
	if w.index == 0 {
		rest := w.gen.h.PortRest
		if w.mappings.Len() >= w.mappings.Capacity()/8*pressFrom {
			rest = min(rest, pressedRest)
		}
		w.mappings.Reap(n, w.tick, rest, w.state.oldestTurn(w.tick))
	}
	return ended
}

// oldestTurn returns when the worker whose turn lasts longest began it, before millisecond now.
func (s *State) oldestTurn(now uint32) uint32 {
	oldest := now
	for w := range s.Workers() {
		if tick := uint32(atomic.LoadUint64(&s.Counters(w).Tick)); int32(tick-oldest) < 0 {
			oldest = tick
		}
	}
	return oldest
}

// martian reports whether a may be nobody's address on the Internet's side: RFC 1122 §3.2.1.3, RFC 6890, RFC 4291.
// A private address is not among them: a VPC may route one to a gateway.
func martian(a inet.Addr) bool {
	if a.Is4() {
		switch n := a.Uint32(); n >> 24 {
		case 0, 127:
			return true
		case 169:
			return n>>16 == 0xa9fe
		default:
			return n>>28 >= 14 // multicast, class E, broadcast
		}
	}
	switch {
	case a.Hi == 0: // unspecified, loopback, mapped, compatible
		return true
	case a.Hi>>56 == 0xff: // multicast
		return true
	case a.Hi>>54 == 0xfe80>>6: // link-local
		return true
	}
	return false
}

// private reports whether a is for private networks (RFC 1918, RFC 4193).
func private(a inet.Addr) bool {
	if a.Is4() {
		n := a.Uint32()
		return n>>24 == 10 || n>>20 == 0xac1 || n>>16 == 0xc0a8
	}
	return a.Hi>>57 == 0xfc>>1
}
