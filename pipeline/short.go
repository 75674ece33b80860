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
	if inside {
		if p.ports = s.Ports; !w.nextHop(p) {
			return false
		}
	} else {
		if s.InPort == noPort || s.Neighbor == NoNeighbor {
			return false
		}
		p.outPort, p.neighbor = s.InPort, s.Neighbor
	}
	mac := w.resolved(p.neighbor)
	if mac == 0 || len(p.Data)-etherLen > int(w.gen.ports[p.outPort].MTU) {
		return false
	}
	delta, headerDelta, addr, port := s.Delta, s.HeaderDelta, s.External, s.ExternalPort()
	if inside {
		s.Last = w.tick
	} else {
		delta, headerDelta, addr, port = delta.Invert(), headerDelta.Invert(), s.Private, s.PrivatePort()
	}
	if p.kind == kindTCP {
		if g := p.segment(); inside {
			sent(s, &g)
		} else {
			came(s, &g)
		}
	}
	if p.family == inet.V4 {
		d := (*[etherLen + header.IPv4Size + 8]byte)(p.Data)
		ip, t := d[etherLen:], d[etherLen+header.IPv4Size:]
		if inside && s.Flags&session.SNAT != 0 && !atomic4(ip) {
			p.newAddr, p.headerDelta = addr, headerDelta
			w.identify(p, ip)
			headerDelta = p.headerDelta
		}
		if inside {
			addr.Put4(ip[12:])
			binary.BigEndian.PutUint16(t, port)
		} else {
			addr.Put4(ip[16:])
			binary.BigEndian.PutUint16(t[2:], port)
		}
		sum := headerDelta.Add(ttlDelta).Apply(binary.BigEndian.Uint16(ip[10:]))
		binary.BigEndian.PutUint16(ip[10:], sum)
		ip[8]--
		p.mendTransport(p.Data[etherLen+header.IPv4Size:], delta)
	} else {
		d := (*[etherLen + header.IPv6Size + 8]byte)(p.Data)
		ip, t := d[etherLen:], d[etherLen+header.IPv6Size:]
		if inside {
			addr.Put16(ip[8:])
			binary.BigEndian.PutUint16(t, port)
		} else {
			addr.Put16(ip[24:])
			binary.BigEndian.PutUint16(t[2:], port)
		}
		ip[7]--
		p.mendTransport(p.Data[etherLen+header.IPv6Size:], delta)
	}
	w.queue(p.outPort, mac, p.Handle, p.Data)
	return true
}

// mendTransport brings the checksum of a TCP or UDP header in line.
func (p *Packet) mendTransport(t []byte, delta header.Delta) {
	if p.kind == kindTCP {
		putSum(t[16:18], delta.Apply(binary.BigEndian.Uint16(t[16:])))
	} else {
		putSum(t[6:8], delta.ApplyUDP(binary.BigEndian.Uint16(t[6:])))
	}
}
