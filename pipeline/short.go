// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// Most packets are UDP or TCP, whole, in the middle of a session, and change nothing of it but its time. Those go the short way: from
// their session to a queue in one step, with the same result as by the stages, which take everything else. A test compares the two.

// shortStates are the states of sessions whose packets may go the short way, a bit each.
const shortStates = 1<<session.UDP | 1<<session.TCPOpen

// short takes a plain packet of session s its way, or reports that it must go the long one; then nothing has changed.
func (w *Worker) short(inside bool, s *session.Session, p *Packet) bool {
	const long = session.Hairpin | session.Asked
	// The generation comes first: Timer is an index into its own table.
	if s.Generation != uint32(w.gen.Number) || s.Flags&long != 0 || shortStates>>s.State()&1 == 0 || w.over(s) {
		return false
	}
	var port uint8
	var mac uint64
	if inside {
		if port, mac = w.spread(p.family, s.Ports, p.remote, p.hash); mac == 0 {
			return false
		}
	} else if port = s.InPort; port == noPort || s.Neighbor == NoNeighbor {
		return false
	} else if mac = w.resolved(s.Neighbor); mac == 0 {
		return false
	}
	frame := p.Data
	if len(frame)-etherLen > int(w.gen.ports[port].MTU) {
		return false
	}

	transport := etherLen + header.IPv4Size
	if p.family == inet.V6 {
		transport = etherLen + header.IPv6Size
	}
	delta, headerDelta, addr, newPort, at := s.Delta, s.HeaderDelta, s.External, s.ExternalPort(), 0
	if inside {
		s.Last = w.tick
	} else {
		delta, headerDelta, addr, newPort, at = delta.Invert(), headerDelta.Invert(), s.Private, s.PrivatePort(), 1
	}
	if p.kind == kindTCP {
		g := p.segment()
		if inside {
			sent(s, &g)
		} else {
			came(s, &g)
		}
		t := frame[transport+16:]
		putSum(t, delta.Apply(binary.BigEndian.Uint16(t)))
	} else {
		t := frame[transport+6:]
		putSum(t, delta.ApplyUDP(binary.BigEndian.Uint16(t)))
	}
	binary.BigEndian.PutUint16(frame[transport+2*at:], newPort)

	if p.family == inet.V4 {
		ip := (*[header.IPv4Size]byte)(frame[etherLen:])
		mend := uint32(headerDelta) + uint32(ttlDelta)
		if inside && s.Flags&session.SNAT != 0 && !atomic4(ip[:]) {
			id := w.pieces.nextID(addr, p.remote, p.proto)
			mend += uint32(^binary.BigEndian.Uint16(ip[4:])) + uint32(id)
			binary.BigEndian.PutUint16(ip[4:], id)
		}
		putSum(ip[10:], header.Mend(binary.BigEndian.Uint16(ip[10:]), mend))
		ip[8]--
		addr.Put4(ip[12+4*at:])
	} else {
		ip := (*[header.IPv6Size]byte)(frame[etherLen:])
		ip[7]--
		addr.Put16(ip[8+16*at:])
	}
	w.queue(port, mac, p.Handle, frame)
	return true
}
