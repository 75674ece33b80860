// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// Most packets are UDP or TCP, whole, in the middle of a session, and change nothing of it but its
// time. Those go the short way: parsePlain takes them in, and short takes them from their session
// to a queue, in one step each. The result is that of parse and the stages, which take everything
// else; tests compare the two.

// Where the transport header of a plain packet begins.
const (
	plain4 = header.EthernetSize + header.IPv4Size
	plain6 = header.EthernetSize + header.IPv6Size
)

// parsePlain takes in a packet that parse would let pass, and that is for this station, UDP or TCP,
// without options and extension headers, no fragment, with hops to go; of TCP neither beginning nor
// end. Anything else is parse's to judge: then it returns false, and what it noted does not matter.
// Its twins are parse, parse4, parse6 and parseTransport: what they refuse, it must not take.
func (p *Packet) parsePlain(inside bool, mac uint64) bool {
	d := p.Data
	if len(d) < plain4+header.UDPSize || p.Long {
		return false
	}
	e := (*[plain4 + header.UDPSize]byte)(d)
	src := binary.LittleEndian.Uint64(e[4:]) >> 16
	if binary.LittleEndian.Uint64(e[:])&state.MACMask != mac || src&state.MACGroup != 0 || src == 0 || src == mac {
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

// sumOK reports whether the checksum of an IPv4 header without options is right: its words add up
// to 0xffff. In whatever byte order they are added, that is so if and only if the sum is a multiple
// of it, for some word is not 0.
func sumOK(ip *[header.IPv4Size]byte) bool {
	sum := uint64(binary.LittleEndian.Uint32(ip[0:])) + uint64(binary.LittleEndian.Uint32(ip[4:])) +
		uint64(binary.LittleEndian.Uint32(ip[8:])) + uint64(binary.LittleEndian.Uint32(ip[12:])) + uint64(binary.LittleEndian.Uint32(ip[16:]))
	return sum%0xffff == 0
}
