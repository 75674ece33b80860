// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/attach"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// longFlags are the flags with which no session's packets may go the short way: all that are not
// allowed.
func longFlags(inside bool) uint16 {
	if inside {
		return ^uint16(session.ShortInside)
	}
	return ^uint16(session.ShortOutside)
}

// settled reports whether a session is in the middle of its life, is of the generation in use, and
// has none of the flags for which its packets must go the long way.
func (w *Worker) settled(ref uint32, long uint16) bool {
	const states = 1<<session.UDP | 1<<session.TCPOpen
	s := w.sessions.At(ref)
	return s.Generation == uint32(w.gen.Number) && s.Flags&long == 0 && states>>(s.State()%64)&1 != 0
}

// over reports whether the time of a session is over.
func (w *Worker) over(s *session.Session) bool {
	return w.tick-s.Last > w.limit(s) || s.Flags&session.Draining != 0 && int32(w.tick-s.Drain) >= 0
}

// limit returns for how many milliseconds a session may be idle.
func (w *Worker) limit(s *session.Session) uint32 {
	if s.Timer != 0 && s.State() == session.UDP {
		return w.gen.Header.UDPTimeouts[s.Timer]
	}
	return w.timeouts[s.State()%session.NumStates]
}

// short takes a plain packet of session s, which is settled, to a queue, or reports that it must go
// the long way; then nothing has changed. hash is that of the key by which the session was found.
// Its twins are the stages apply to transmit: what they do for such a packet is done here too.
func (w *Worker) short(inside bool, s *session.Session, p *Packet, hash uint64) bool {
	if w.over(s) {
		return false
	}
	var at attach.Word
	var mac uint64
	var mtu int
	if inside {
		if (p.from.At != s.At || p.via != 0 || s.Flags&session.Bound != 0) && !w.sends(s, p, false) {
			return false
		}
		l := w.liveHops(p.family)
		if l.n == 0 || l.ports&^w.gen.Groups[s.HopGroup].Ports != 0 {
			return false
		}
		h := &l.hops[share(hash, l.n)%maxLiveHops]
		at, mac, mtu = h.At, h.mac, h.mtu
	} else if at = s.At; at == attach.None || s.Neighbor == state.NoNeighbor {
		return false
	} else if mac = w.resolved(s.Neighbor); mac == 0 {
		return false
	} else {
		mtu = int(w.gen.Links[s.Link].MTU)
	}
	if len(p.Data)-header.EthernetSize > mtu || !at.Plain() && !w.wrappable(w.shortWay(inside, s, at), p) {
		return false
	}
	if p.kind == kindTCP {
		w.trackTCP(s, p, inside)
	}
	if inside || s.Flags&session.Refresh != 0 {
		s.Last = w.tick
	}
	if p.family == inet.V4 {
		w.rewrite4(inside, s, p)
	} else {
		rewrite6(inside, s, p)
	}
	if at.Plain() {
		w.queue(at.Port(), mac, p.Handle, p.Data)
	} else {
		w.wrap(w.shortWay(inside, s, at), mac, &parcel{p.Data, p.Handle, p.Front, p.tci, uint16(hash)})
	}
	return true
}

// shortWay is the way of a session's packets, to the outside port that was chosen or to its
// instance.
func (w *Worker) shortWay(inside bool, s *session.Session, at attach.Word) way {
	if inside {
		return wayOut(at)
	}
	return way{at, s.Link}
}

// wrappable reports whether there is room for what goes before a packet, and through a tunnel a
// neighbor that takes it.
func (w *Worker) wrappable(to way, p *Packet) bool {
	return int(p.Front) >= overhead(to.at) && (!to.at.Tunnel() || w.resolved(w.gen.Links[to.link].Neighbor) != 0)
}

// rewrite4 is rewrite for a plain IPv4 packet. Its twins are Worker.rewrite and Packet.translate
// for all packets, and rewrite6.
func (w *Worker) rewrite4(inside bool, s *session.Session, p *Packet) {
	d := (*[plain4 + header.UDPSize]byte)(p.Data)
	ip, t := (*[header.IPv4Size]byte)(d[header.EthernetSize:]), (*[header.UDPSize]byte)(d[plain4:])
	delta, sum := s.Delta, uint32(ttlDelta)
	if inside {
		sum += uint32(s.HeaderDelta)
		if s.Flags&session.SNAT != 0 && !atomic4(ip[:]) {
			id := w.ids.nextID(s.External, s.Remote, p.proto)
			sum += uint32(^binary.BigEndian.Uint16(ip[4:])) + uint32(id)
			binary.BigEndian.PutUint16(ip[4:], id)
		}
		s.External.Put4(ip[12:])
		binary.BigEndian.PutUint16(t[:], s.ExternalPort())
	} else {
		delta = delta.Invert()
		sum += uint32(s.HeaderDelta.Invert())
		s.Private.Put4(ip[16:])
		binary.BigEndian.PutUint16(t[2:], s.PrivatePort())
	}
	ip[8]--
	binary.BigEndian.PutUint16(ip[10:], header.Mend(binary.BigEndian.Uint16(ip[10:]), sum))
	if p.kind == kindUDP {
		binary.BigEndian.PutUint16(t[6:], delta.ApplyUDP(binary.BigEndian.Uint16(t[6:])))
	} else {
		t := (*[plain4 + header.TCPSize]byte)(p.Data)[plain4:]
		binary.BigEndian.PutUint16(t[16:], delta.Apply(binary.BigEndian.Uint16(t[16:])))
	}
}

// rewrite6 is rewrite for a plain IPv6 packet. Its twins are Worker.rewrite and Packet.translate
// for all packets, and rewrite4.
func rewrite6(inside bool, s *session.Session, p *Packet) {
	d := (*[plain6 + header.UDPSize]byte)(p.Data)
	ip, t := (*[header.IPv6Size]byte)(d[header.EthernetSize:]), (*[header.UDPSize]byte)(d[plain6:])
	delta := s.Delta
	if inside {
		s.External.Put16(ip[8:])
		binary.BigEndian.PutUint16(t[:], s.ExternalPort())
	} else {
		delta = delta.Invert()
		s.Private.Put16(ip[24:])
		binary.BigEndian.PutUint16(t[2:], s.PrivatePort())
	}
	ip[7]--
	if p.kind == kindUDP {
		binary.BigEndian.PutUint16(t[6:], delta.ApplyUDP(binary.BigEndian.Uint16(t[6:])))
	} else {
		t := (*[plain6 + header.TCPSize]byte)(p.Data)[plain6:]
		binary.BigEndian.PutUint16(t[16:], delta.Apply(binary.BigEndian.Uint16(t[16:])))
	}
}
