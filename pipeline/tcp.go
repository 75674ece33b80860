// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/session"
)

// The sides of a session, as Session.End and Session.Ack are indexed.
const (
	inSide = iota
	outSide
)

// ofConnection are the flags that one connection leaves on a session and the next one begins
// without.
const ofConnection = session.SeenInside | session.SeenOutside | session.FinInside | session.FinOutside | session.Reset | session.Asked

// after reports whether sequence number a comes after b, modulo 2^32 (RFC 9293 §3.4).
func after(a, b uint32) bool { return int32(a-b) > 0 }

// segment is what tracking reads of a packet.
type segment struct {
	seq, end, ack uint32 // end: one past the last number that it takes
	flags         uint8
}

func (p *Packet) segment() segment {
	t := p.Data[p.transport:]
	g := segment{binary.BigEndian.Uint32(t[4:]), 0, binary.BigEndian.Uint32(t[8:]), p.tcpFlags}
	g.end = g.seq + uint32(len(t)) - uint32(t[12]>>4)*4
	if g.flags&tcpSYN != 0 {
		g.end++
	}
	if g.flags&tcpFIN != 0 {
		g.end++
	}
	return g
}

// beginTCP notes the SYN that began a session.
func beginTCP(s *session.Session, p *Packet, side int) {
	g := p.segment()
	s.End[side], s.Ack[1-side] = g.end, g.seq+1
	if side == inSide {
		s.Flags |= session.SeenInside | session.Asked
	}
}

// trackTCP moves a TCP session on (RFC 7857 §2, RFC 6146 §3.5.2), loosely: only a reset is
// ever checked against sequence numbers. It returns false for a reset from outside that does not
// fit them, which has no effect at all.
//
// What is known of a side's numbers begins with its SYN. An instance is believed what it says,
// because all it can spoil is its own connection. What comes from outside may be forged by an
// attacker that sees nothing: it counts only if it acknowledges something between what the other
// side last did and all that the instance has sent, so that on an idle connection one number in
// 2^32 is right.
func (w *Worker) trackTCP(s *session.Session, p *Packet, inside bool) bool {
	g := p.segment()
	if g.flags&(tcpFIN|tcpSYN|tcpRST|tcpACK) == tcpACK && s.State() == session.TCPOpen && s.Flags&session.Asked == 0 {
		if inside {
			sent(s, &g)
		} else {
			came(s, &g)
		}
		return true
	}
	return w.changeTCP(s, &g, inside)
}

// changeTCP handles the segments that may change a state.
func (w *Worker) changeTCP(s *session.Session, g *segment, inside bool) bool {
	was := s.State()
	switch {
	case g.flags&tcpRST != 0:
		if was == session.Unconfirmed {
			return true
		}
		if !fits(s, g, inside) {
			return inside // the remote holds it against its own numbers: RFC 7857 §2.2
		}
		switch was {
		case session.TCPOpen:
			s.Flags |= session.Reset
			s.SetState(session.TCPClosing)
		case session.TCPOpening:
			s.SetState(session.TCPClosing)
		}
	case g.flags&(tcpSYN|tcpFIN) == tcpSYN && inside:
		synSent(s, g)
	case g.flags&(tcpSYN|tcpFIN) == tcpSYN:
		synCame(s, g)
	case g.flags&(tcpSYN|tcpACK) == tcpACK && was != session.Unconfirmed:
		data(s, g, inside)
	}
	// The closing timer begins when established ends; resets and data in turn must not keep a
	// session alive.
	if was == session.TCPOpen && s.State() == session.TCPClosing {
		s.Last = w.tick
	}
	if s.Mapping != session.None && s.Closed() {
		w.give(s)
	}
	return true
}

// sent notes what an instance sent and acknowledged.
func sent(s *session.Session, g *segment) {
	if after(g.end, s.End[inSide]) {
		s.End[inSide] = g.end
	}
	if after(g.ack, s.Ack[inSide]) {
		s.Ack[inSide] = g.ack
		if after(g.ack, s.End[outSide]) { // it passed somewhere else
			s.End[outSide] = g.ack
		}
	}
}

// came notes what the remote sent and acknowledged, and reports whether the segment is the
// connection's.
func came(s *session.Session, g *segment) bool {
	if after(s.Ack[outSide], g.ack) || after(g.ack, s.End[inSide]) {
		return false
	}
	if s.Ack[outSide] != g.ack {
		s.Ack[outSide] = g.ack
	}
	if after(g.end, s.End[outSide]) {
		s.End[outSide] = g.end
	}
	return true
}

// data handles a segment without SYN and RST that acknowledges something.
func data(s *session.Session, g *segment, inside bool) {
	const both = session.SeenInside | session.SeenOutside
	const fins = session.FinInside | session.FinOutside
	last := s.End[outSide]
	ours := true
	if inside {
		s.Flags &^= session.Asked
		sent(s, g)
		if g.flags&tcpFIN != 0 {
			s.Flags |= session.FinInside
		}
	} else {
		ours = s.Flags&session.SeenInside != 0 && came(s, g)
		// A FIN that was overtaken acknowledges less than is known; then its place tells.
		place := s.Flags&both == both && !after(s.Ack[inSide], g.seq) && !after(g.end, s.End[outSide])
		if g.flags&tcpFIN != 0 && (ours || place) {
			s.Flags |= session.FinOutside
		}
	}
	switch s.State() {
	case session.TCPOpening:
		if s.Flags&both == both && ours {
			s.SetState(session.TCPOpen)
		}
	case session.TCPClosing:
		if s.Flags&session.Reset == 0 {
			return
		}
		// A side that goes on where the connection was has not been reset. A probe lies one before.
		if inside && !after(s.End[inSide], g.end+1) || !inside && ours && g.end != g.seq && !after(last, g.end) {
			s.Flags &^= session.Reset
			s.SetState(session.TCPOpen)
		}
	}
	if s.Flags&fins == fins && s.State() == session.TCPOpen {
		s.SetState(session.TCPClosing)
	}
}

// synSent handles SYN and SYN,ACK from inside. A SYN in the closing state opens it again, and so
// does the answer to one from outside. On an established session it is the instance that lost the
// connection: what the remote says to that decides.
func synSent(s *session.Session, g *segment) {
	if s.State() == session.TCPClosing {
		s.SetState(session.TCPOpening)
		s.Flags &^= ofConnection
	}
	again := s.Flags&session.SeenInside != 0 && s.Ack[outSide] == g.seq+1
	if !again || after(g.end, s.End[inSide]) { // perhaps without the first one's data
		s.End[inSide] = g.end
	}
	s.Ack[outSide] = g.seq + 1
	s.Flags = s.Flags&^session.FinInside | session.SeenInside
	if g.flags&tcpACK == 0 {
		s.Flags |= session.Asked
		return
	}
	if again && s.Flags&session.Asked != 0 && s.State() == session.TCPOpening {
		s.SetState(session.TCPOpen) // it has said SYN and heard one: simultaneous open
	}
	s.Ack[inSide] = g.ack
	if !again || after(g.ack, s.End[outSide]) {
		s.End[outSide] = g.ack
	}
	s.Flags = s.Flags&^(session.FinOutside|session.Asked) | session.SeenOutside
}

// synCame handles SYN and SYN,ACK from outside. A SYN alone proves nothing: it counts where nothing
// is at stake and, as the other half of a simultaneous open, while nothing has come; elsewhere the
// instance's answer to it counts. A SYN,ACK has to acknowledge what was asked, or it is of an
// earlier connection.
func synCame(s *session.Session, g *segment) {
	st, asked := s.State(), s.Flags&session.Asked != 0
	switch {
	case st == session.Unconfirmed && g.flags&tcpACK == 0:
	case st == session.TCPOpening && g.flags&tcpACK == 0 && asked && s.Flags&session.SeenOutside == 0:
		s.SetState(session.TCPOpen)
	case g.flags&tcpACK != 0 && asked && !after(s.Ack[outSide], g.ack) && !after(g.ack, s.End[inSide]):
		s.Ack[outSide] = g.ack
		s.Flags &^= session.FinOutside
	default:
		return
	}
	s.End[outSide], s.Ack[inSide] = g.end, g.seq+1
	s.Flags |= session.SeenOutside
}

// lateReset is how far before the next number a reset of a closed connection may be: it answers
// what its sender had in its hands.
const lateReset = 1 << 16

// fits reports whether a reset belongs to the connection (RFC 7857 §2.2, RFC 5961 §3.2): its number
// is the very next that the other side expects, or that its sender would send; or it refuses a SYN.
// Where a FIN has passed, the ends may differ by it and by what was on the way (but not by so much
// that the number can be guessed).
func fits(s *session.Session, g *segment, inside bool) bool {
	side, seen := outSide, uint16(session.SeenOutside)
	if inside {
		side, seen = inSide, session.SeenInside
	}
	if !inside && s.Flags&session.Asked != 0 && g.flags&tcpACK != 0 && (g.ack == s.End[inSide] || g.ack == s.Ack[outSide]) {
		return true
	}
	if s.Flags&seen == 0 {
		return false
	}
	next, end := s.Ack[1-side], s.End[side]
	if g.seq == next || g.seq == end {
		return true
	}
	if s.Flags&(session.FinInside|session.FinOutside) == 0 && s.State() != session.TCPClosing {
		return false
	}
	first, last := next-1, end+1
	if after(next, end) {
		last = next + 1
	}
	if s.State() == session.TCPClosing {
		first = next - lateReset
	}
	return !after(first, g.seq) && !after(g.seq, last)
}
