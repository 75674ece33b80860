// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// Most packets are UDP or TCP, whole, in the middle of a session, and change nothing of it but its time. Those go the short way: parsePlain
// takes them in, and short takes them from their session to a queue, in one step each. The result is that of parse and the stages, which
// take everything else; tests compare the two.

// Where the transport header of a plain packet begins.
const (
	plain4 = header.EthernetSize + header.IPv4Size
	plain6 = header.EthernetSize + header.IPv6Size
)

// parsePlain takes in a packet that parse would let pass, and that is for this station, UDP or TCP, without options and extension headers, no
// fragment, with hops to go; of TCP neither beginning nor end. Anything else is parse's to judge: then it returns false, and what it
// noted does not matter.
func (p *Packet) parsePlain(inside bool, mac uint64) bool {
	d := p.Data
	if len(d) < plain4+header.UDPSize || p.Long {
		return false
	}
	e := (*[plain4 + header.UDPSize]byte)(d)
	src := binary.LittleEndian.Uint64(e[4:]) >> 16
	if binary.LittleEndian.Uint64(e[:])&macMask != mac || src&macGroup != 0 || src == 0 || src == mac {
		return false
	}
	p.act, p.headerDelta, p.marks = actNone, 0, marks{plain: true}
	var local, remote inet.Addr
	var t *[header.UDPSize]byte
	var proto uint8
	var size int // of the transport header and what it carries
	switch binary.BigEndian.Uint16(e[12:]) {
	case header.EtherTypeIPv4:
		ip := (*[header.IPv4Size]byte)(e[header.EthernetSize:])
		total := int(binary.BigEndian.Uint16(ip[2:]))
		if ip[0] != 0x45 || header.EthernetSize+total > len(d) || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 || ip[8] <= 1 || !sumOK(ip) {
			return false
		}
		p.family, p.transport = inet.V4, plain4
		proto, size = ip[9], total-header.IPv4Size
		local, remote = inet.From4(ip[12:]), inet.From4(ip[16:])
		t = (*[header.UDPSize]byte)(e[plain4:])
	case header.EtherTypeIPv6:
		if len(d) < plain6+header.UDPSize {
			return false
		}
		e := (*[plain6 + header.UDPSize]byte)(d)
		ip := (*[header.IPv6Size]byte)(e[header.EthernetSize:])
		size = int(binary.BigEndian.Uint16(ip[4:]))
		if ip[0]>>4 != 6 || plain6+size > len(d) || ip[7] <= 1 {
			return false
		}
		p.family, p.transport = inet.V6, plain6
		proto = ip[6]
		local, remote = inet.From16(ip[8:]), inet.From16(ip[24:])
		t = (*[header.UDPSize]byte)(e[plain6:])
		if local.Is4() || remote.Is4() || proto == header.ProtocolUDP && t[6]|t[7] == 0 {
			return false
		}
	default:
		return false
	}
	switch proto {
	case header.ProtocolUDP:
		if n := int(binary.BigEndian.Uint16(t[4:])); n < header.UDPSize || n > size {
			return false
		}
		p.kind, p.tcpFlags = kindUDP, 0
	case header.ProtocolTCP:
		if size < header.TCPSize {
			return false
		}
		t := (*[header.TCPSize]byte)(d[p.transport:])
		if n := int(t[12]>>4) * 4; n < header.TCPSize || n > size || t[13]&(tcpFIN|tcpSYN|tcpRST|tcpACK) != tcpACK {
			return false
		}
		p.kind, p.tcpFlags = kindTCP, t[13]
	default:
		return false
	}
	p.Data = d[:int(p.transport)+size] // Ethernet padding ends here
	p.proto = proto
	ports := binary.BigEndian.Uint32(t[:])
	if inside {
		p.local, p.remote, p.localPort, p.remotePort = local, remote, uint16(ports>>16), uint16(ports)
	} else {
		p.local, p.remote, p.localPort, p.remotePort = remote, local, uint16(ports), uint16(ports>>16)
	}
	return true
}

// sumOK reports whether the checksum of an IPv4 header without options is right: its words add up to 0xffff. In whatever byte order they are
// added, that is so if and only if the sum is a multiple of it, for some word is not 0.
func sumOK(ip *[header.IPv4Size]byte) bool {
	sum := uint64(binary.LittleEndian.Uint32(ip[0:])) + uint64(binary.LittleEndian.Uint32(ip[4:])) +
		uint64(binary.LittleEndian.Uint32(ip[8:])) + uint64(binary.LittleEndian.Uint32(ip[12:])) + uint64(binary.LittleEndian.Uint32(ip[16:]))
	return sum%0xffff == 0
}

// settled reports whether a session is in the middle of its life, is of the generation in use, and has none of the flags for which its packets must
// go the long way.
func (w *Worker) settled(ref uint32, long uint16) bool {
	const states = 1<<session.UDP | 1<<session.TCPOpen
	s := w.sessions.At(ref)
	return s.Generation == uint32(w.gen.Number) && s.Flags&long == 0 && states>>(s.State()%64)&1 != 0
}

// short takes a plain packet of session s, which is settled, to a queue, or reports that it must go the long way; then nothing has changed. hash is that of
// the key by which the session was found.
func (w *Worker) short(inside bool, s *session.Session, p *Packet, hash uint64) bool {
	if w.over(s) {
		return false
	}
	var port uint8
	var mac uint64
	if inside {
		l := w.liveHops(p.family)
		if l.n == 0 || l.ports&^s.Ports != 0 {
			return false
		}
		h := &l.hops[share(hash, l.n)%maxLiveHops]
		port, mac = h.Port, h.mac
	} else if port = s.InPort; port == noPort || s.Neighbor == NoNeighbor {
		return false
	} else if mac = w.resolved(s.Neighbor); mac == 0 {
		return false
	}
	if len(p.Data)-header.EthernetSize > w.mtus[port%MaxPorts] {
		return false
	}
	if p.kind == kindTCP {
		w.trackTCP(s, p, inside)
	}
	if inside {
		s.Last = w.tick
	}
	if p.family == inet.V4 {
		w.rewrite4(inside, s, p)
	} else {
		rewrite6(inside, s, p)
	}
	w.queue(port, mac, p.Handle, p.Data)
	return true
}

// rewrite4 is rewrite for a plain IPv4 packet.
func (w *Worker) rewrite4(inside bool, s *session.Session, p *Packet) {
	d := (*[plain4 + header.UDPSize]byte)(p.Data)
	ip, t := (*[header.IPv4Size]byte)(d[header.EthernetSize:]), (*[header.UDPSize]byte)(d[plain4:])
	delta, sum := s.Delta, uint32(ttlDelta)
	if inside {
		sum += uint32(s.HeaderDelta)
		if s.Flags&session.SNAT != 0 && !atomic4(ip[:]) {
			id := w.pieces.nextID(s.External, s.Remote, p.proto)
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
	putSum(ip[10:], header.Mend(binary.BigEndian.Uint16(ip[10:]), sum))
	if p.kind == kindUDP {
		putSum(t[6:], delta.ApplyUDP(binary.BigEndian.Uint16(t[6:])))
	} else {
		t := (*[plain4 + header.TCPSize]byte)(p.Data)[plain4:]
		putSum(t[16:], delta.Apply(binary.BigEndian.Uint16(t[16:])))
	}
}

// rewrite6 is rewrite for a plain IPv6 packet.
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
		putSum(t[6:], delta.ApplyUDP(binary.BigEndian.Uint16(t[6:])))
	} else {
		t := (*[plain6 + header.TCPSize]byte)(p.Data)[plain6:]
		putSum(t[16:], delta.Apply(binary.BigEndian.Uint16(t[16:])))
	}
}
