// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// apply gives those packets of a run that have a live session their rewriting: they need neither
// route nor select. act stays actNone for the others. The run begins with the first-th packet of
// the look-up.
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
		case !b.inside && w.astray(s, p):
			w.end(ref) // the port is nobody's, or another endpoint's, whose filtering decides
		case !b.inside:
			if !p.uninvited(s) {
				w.fromOutside(s, p)
			}
		case !w.sends(s, p, true): // route says why not
		case s.State() == session.Unconfirmed && ((p.kind == kindTCP || p.kind == kindEchoRequest) && begins(p) || !w.confirm(ref, s, p)):
			// No reply, but a beginning: the sender outside does not choose its address. Or the
			// mapping that it went to is gone.
			w.end(ref)
		case s.Flags&session.Given != 0 && p.tcpFlags&(tcpSYN|tcpRST) == tcpSYN && !w.regain(ref, s, p):
			w.end(ref) // its port is another endpoint's: what begins is a flow like any other
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

// stray reports whether a packet takes no part in sessions: ICMP other than queries, and what goes
// no further.
func (p *Packet) stray() bool { return p.kind >= kindError || p.expired || p.pinned }

// uninvited reports whether a packet from outside does not belong to its session: a ping to an
// identifier that is mapped for replies to the instance's pings, or a packet that only claims to
// come from an external address of weir, whose packets turn back and never come in at a port.
func (p *Packet) uninvited(s *session.Session) bool {
	return p.kind == kindEchoRequest && s.Flags&session.SNAT != 0 || p.turned != (s.Flags&session.Hairpin != 0)
}

// late finds the session, or nil, of a packet that began after the batch was looked up: with an
// earlier packet of one burst.
func (w *Worker) late(k session.Key, p *Packet) *session.Session {
	if !w.created || p.stray() {
		return nil
	}
	return w.liveSession(k)
}

// fromInside applies a session to a packet from its instance. Only these refresh it (RFC 4787
// REQ-6). Its twin is short.
func (w *Worker) fromInside(s *session.Session, p *Packet) {
	if p.tcpFlags&tcpRST == 0 { // which may answer what came from outside (RFC 7857 §8)
		s.Last = w.tick
	}
	if p.kind == kindTCP {
		w.trackTCP(s, p, true)
	}
	p.hairpin = s.Flags&session.Hairpin != 0
	p.leaveAs(s.External, s.ExternalPort(), w.gen.Groups[s.HopGroup].Ports, s.Flags&session.SNAT != 0)
	p.delta, p.headerDelta = s.Delta, s.HeaderDelta
}

// leaveAs notes that a packet leaves as from an external address and port, by one of ports; shared:
// other instances have the address too.
func (p *Packet) leaveAs(external inet.Addr, port uint16, ports uint32, shared bool) {
	p.act, p.newAddr, p.newPort, p.ports, p.shared = actOut, external, port, ports, shared
}

// confirm lets the first packet from inside, but a reset, confirm a session that began outside.
// Through SNAT it holds the mapping from here on; false: that is gone.
func (w *Worker) confirm(ref uint32, s *session.Session, p *Packet) bool {
	if p.tcpFlags&tcpRST != 0 || p.kind == kindPiece {
		return true
	}
	mapping := session.None
	if s.Flags&(session.SNAT|session.Forward) == session.SNAT {
		h := w.gen.Host(0, s.External)
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

// fromOutside applies a session to a packet from the Internet. Its twin is short.
func (w *Worker) fromOutside(s *session.Session, p *Packet) {
	if p.kind == kindTCP && !w.trackTCP(s, p, false) {
		p.act = actReset
		return
	}
	// What filtering has refused does not come here, and who began a session does not keep it alive
	// alone (RFC 7857 §7). An opening and a closing connection have their time from inside only.
	if s.Flags&session.Refresh != 0 && p.tcpFlags&tcpRST == 0 && refreshable>>(s.State()%64)&1 != 0 {
		s.Last = w.tick
	}
	p.act = actIn
	p.newAddr, p.newPort = s.Private, s.PrivatePort()
	p.delta, p.headerDelta = s.Delta.Invert(), s.HeaderDelta.Invert()
	p.to, p.neighbor = way{s.At, s.Link}, s.Neighbor
}

// refreshable are the states that packets from outside may refresh, where the pool says that they
// do.
const refreshable = 1<<session.UDP | 1<<session.ICMP | 1<<session.Other | 1<<session.TCPOpen

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

// regain lets a SYN or SYN,ACK from inside open a session anew that has let go of its mapping, if
// its endpoint can still have the port.
func (w *Worker) regain(ref uint32, s *session.Session, p *Packet) bool {
	h := w.gen.Host(0, s.External)
	space, ok := p.portSpace()
	if h == nil || !ok {
		return false
	}
	mapping := w.mappings.Regain(s.VPC, s.Private, s.PrivatePort(), space, h.Slot, s.ExternalPort(), w.tick)
	if mapping == session.None {
		return false
	}
	s.Mapping = mapping
	s.Flags &^= session.Given
	w.sessions.Pair(ref, s)
	return true
}

// give lets a session whose connection is closed go of its mapping, whose port need not rest for it
// (RFC 6888 REQ-8 a). It stays for the time of the closing state, for the segments that its own
// endpoints may still send.
func (w *Worker) give(s *session.Session) {
	mapping := s.Mapping
	s.Mapping = session.None // first: after a crash, sessions tell who holds what
	s.Flags |= session.Given
	w.sessions.Unpair(s)
	w.mappings.Close(mapping, w.tick)
}
