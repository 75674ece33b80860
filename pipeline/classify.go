// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/drop"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// classify finds the headers of packets from to to, or drops them, or hands them to control. It
// returns how many bytes they have.
func (w *Worker) classify(b *Burst, from, to int) (bytes uint64) {
	port := &w.gen.Ports[b.Port]
	mac, own := w.macs[b.Port], port.Own
	plain := !port.Tagged && !b.opened // opened: by the worker that handed the packets over
	for i := from; i < to; i++ {
		p := &b.Packets[i]
		bytes += uint64(len(p.Data))
		if plain {
			p.from, p.tci, p.via = own, 0, 0
			if p.parsePlain(b.inside, mac) {
				b.live = append(b.live, uint8(i))
			} else {
				w.classifyAny(b, i, mac)
			}
			continue
		}
		w.classifyWrapped(b, i, mac)
	}
	return bytes
}

// classifyWrapped classifies a packet that may have tags or outer headers, or had them.
func (w *Worker) classifyWrapped(b *Burst, i int, mac uint64) {
	p := &b.Packets[i]
	if !b.opened {
		if r := w.unwrap(b, p); r != drop.Pass {
			w.out(p, b.Port, b.inside, refuse(r))
			return
		}
	}
	if p.via != 0 {
		mac = w.station(p.via, mac)
	}
	if p.parsePlain(b.inside, mac) {
		b.live = append(b.live, uint8(i))
	} else {
		w.classifyAny(b, i, mac)
	}
}

// classifyAny classifies a packet that parsePlain leaves to parse.
func (w *Worker) classifyAny(b *Burst, i int, mac uint64) {
	p := &b.Packets[i]
	v := w.parse(p, b.inside, mac)
	if v == refuse(drop.VLANTag) && !w.gen.Ports[b.Port].Tagged && !b.opened && p.untagPriority() {
		v = w.parse(p, b.inside, mac)
	}
	switch v {
	case goesOn:
		b.fragments = b.fragments || p.fragmented
		// Without a checksum nothing tells whether the addresses are the sender's. A router
		// forwards such UDP as it is; a translation would vouch for it, and does so for the
		// tunnels that the configuration names (RFC 6935 §5, RFC 6936 §5).
		if p.noSum && !w.gen.ZeroSum(p.localPort, p.remotePort) {
			p.pinned = true
		}
		b.live = append(b.live, uint8(i))
	case punted:
		if p.via != 0 && !w.speaks(p) {
			w.out(p, b.Port, b.inside, refuse(drop.SpoofedHost))
			return
		}
		w.punt(b, p)
	default:
		// The driver has cut what was longer than the link takes at one piece. The kernel makes
		// such, of fragments.
		if v == refuse(drop.ShortFrame) && len(p.Data)-header.EthernetSize >= int(w.gen.Ports[b.Port].MTU) {
			v = refuse(drop.Truncated)
		}
		w.out(p, b.Port, b.inside, v)
	}
}

// parse takes in any packet, or says what becomes of it. The twin of it, of parse4, parse6 and
// parseTransport is parsePlain, for most packets.
func (w *Worker) parse(p *Packet, inside bool, mac uint64) verdict {
	p.act, p.headerDelta, p.marks = actNone, 0, marks{}
	d := p.Data
	if p.Long {
		return refuse(drop.Oversized)
	}
	if len(d) < header.EthernetSize {
		return refuse(drop.ShortFrame)
	}
	e := (*[header.EthernetSize]byte)(d)
	// Source: not a group, not zero, not our own (a loop).
	dst, src := binary.LittleEndian.Uint64(e[:])&state.MACMask, binary.LittleEndian.Uint64(e[4:])>>16
	if src&state.MACGroup != 0 || src == 0 || src == mac {
		return refuse(drop.Martian)
	}
	group := dst&state.MACGroup != 0
	if dst != mac && !group && !w.anyMAC {
		return refuse(drop.NotOurMAC)
	}
	switch binary.BigEndian.Uint16(e[12:]) {
	case header.EtherTypeIPv4:
		if group {
			return refuse(drop.NotOurMAC)
		}
		return p.parse4(inside)
	case header.EtherTypeIPv6:
		v := p.parse6(inside)
		if group && v == goesOn {
			return refuse(drop.NotOurMAC) // of group addresses weir hears neighbor discovery only
		}
		return v
	case header.EtherTypeARP:
		return punted
	case header.EtherTypeVLAN, header.EtherTypeQinQ, 0x9100:
		return refuse(drop.VLANTag)
	}
	return refuse(drop.BadEtherType)
}

func (p *Packet) parse4(inside bool) verdict {
	d := p.Data[header.EthernetSize:]
	if len(d) < header.IPv4Size {
		return refuse(drop.ShortFrame)
	}
	h := (*[header.IPv4Size]byte)(d)
	hlen, total := int(h[0]&0x0f)*4, int(binary.BigEndian.Uint16(h[2:]))
	if h[0]>>4 != 4 || hlen < header.IPv4Size || total < hlen {
		return refuse(drop.BadIPHeader)
	}
	if total > len(d) {
		return refuse(drop.ShortFrame)
	}
	p.Data = p.Data[:header.EthernetSize+total] // Ethernet padding ends here
	if hlen == header.IPv4Size {
		if !sumOK(h) {
			return refuse(drop.BadIPChecksum)
		}
	} else if header.Checksum(d[:hlen], 0) != 0xffff {
		return refuse(drop.BadIPChecksum)
	} else if !optionsForwardable(d[header.IPv4Size:hlen]) {
		return refuse(drop.BadIPHeader)
	}
	if word := binary.BigEndian.Uint16(h[6:]); word&0x3fff != 0 { // MF or an offset
		if v := p.parseFragment(uint32(binary.BigEndian.Uint16(h[4:])), int(word&0x1fff)*8, total-hlen, hlen, word&0x2000 != 0); v != goesOn {
			return v
		}
	}
	p.family = inet.V4
	src, dst := inet.From4(h[12:]), inet.From4(h[16:])
	if inside {
		p.local, p.remote = src, dst
	} else {
		p.local, p.remote = dst, src
	}
	p.expired, p.pinned = h[8] <= 1, h[9] == header.ProtocolAH
	return p.parseTransport(h[9], header.EthernetSize+hlen, inside)
}

func (p *Packet) parse6(inside bool) verdict {
	d := p.Data[header.EthernetSize:]
	if len(d) < 40 {
		return refuse(drop.ShortFrame)
	}
	if d[0]>>4 != 6 {
		return refuse(drop.BadIPHeader)
	}
	total := 40 + int(binary.BigEndian.Uint16(d[4:]))
	if total > len(d) {
		return refuse(drop.ShortFrame)
	}
	d = d[:total]
	p.Data = p.Data[:header.EthernetSize+total]
	p.family = inet.V6
	src, dst := inet.From16(d[8:24]), inet.From16(d[24:40])
	if src.Is4() || dst.Is4() { // IPv4-mapped addresses are never on a wire (RFC 4291 §2.5.5.2)
		return refuse(drop.Martian)
	}
	if inside {
		p.local, p.remote = src, dst
	} else {
		p.local, p.remote = dst, src
	}
	proto, offset, pinned := d[6], 40, false
	if proto != header.ProtocolTCP && proto != header.ProtocolUDP && proto != header.ProtocolICMPv6 {
		chain, fault := header.IPv6(d).Walk()
		switch {
		case fault == header.ChainTruncated && chain.IsFragment(): // RFC 7112 §5
			return refuse(drop.BadFragment)
		case fault != header.ChainOK:
			return refuse(drop.BadExtension)
		case chain.IsFragment():
			size := total - chain.Fragment - header.IPv6FragmentSize
			if v := p.parseFragment(chain.ID, chain.FragmentOffset, size, 0, chain.MoreFragments); v != goesOn {
				return v
			}
		}
		proto, offset, pinned = chain.Protocol, chain.Offset, chain.Pinned
	}
	if v := p.parseTransport(proto, header.EthernetSize+offset, inside); v != goesOn {
		return v
	}
	p.expired, p.pinned = d[7] <= 1, pinned
	return goesOn
}

// parseFragment notes where in its datagram a piece of size bytes, after a header of head bytes,
// belongs.
func (p *Packet) parseFragment(id uint32, at, size, head int, more bool) verdict {
	if size == 0 || more && size%8 != 0 || head+at+size > 65535 {
		return refuse(drop.BadFragment)
	}
	p.fragmented, p.more, p.at, p.size, p.id, p.datagram = true, more, uint16(at), uint16(size), id, nil
	return goesOn
}

// parseTransport finds ports, identifier and flags, or reports what of the transport header is
// wrong. The first fragment of a datagram has all of the header (RFC 1858, RFC 7112), but not all
// that the header tells the length of.
func (p *Packet) parseTransport(proto uint8, offset int, inside bool) verdict {
	d := p.Data[offset:]
	p.proto, p.transport = proto, uint16(offset)
	p.localPort, p.remotePort, p.kind, p.tcpFlags = 0, 0, kindOther, 0
	cut := refuse(drop.BadTransport)
	if p.fragmented {
		if p.at != 0 {
			p.kind = kindPiece
			if proto == header.ProtocolTCP && p.at == 8 { // it would lie over the flags
				return refuse(drop.BadFragment)
			}
			return goesOn
		}
		cut = refuse(drop.BadFragment)
	}
	switch {
	case proto == header.ProtocolTCP:
		if len(d) < 20 {
			return cut
		}
		switch dataOffset := int(d[12]>>4) * 4; {
		case dataOffset < 20:
			return refuse(drop.BadTransport)
		case dataOffset > len(d):
			return cut
		}
		p.kind, p.tcpFlags = kindTCP, d[13]
	case proto == header.ProtocolUDP:
		if len(d) < 8 {
			return cut
		}
		if n := int(binary.BigEndian.Uint16(d[4:])); n < 8 || n > len(d) && !p.fragmented {
			return refuse(drop.BadTransport)
		}
		p.noSum = p.family == inet.V6 && d[6]|d[7] == 0
		p.kind = kindUDP
	case proto == header.ProtocolICMP && p.family == inet.V4, proto == header.ProtocolICMPv6 && p.family == inet.V6:
		return p.parseICMP(d, inside)
	case proto == header.ProtocolUDPLite, proto == header.ProtocolDCCP:
		if len(d) < 8 {
			return cut
		}
		return goesOn
	default:
		return goesOn
	}
	ports := binary.BigEndian.Uint32(d)
	a, b := uint16(ports>>16), uint16(ports)
	if inside {
		p.localPort, p.remotePort = a, b
	} else {
		p.localPort, p.remotePort = b, a
	}
	return goesOn
}

func (p *Packet) parseICMP(d []byte, inside bool) verdict {
	if len(d) < 8 {
		if p.fragmented {
			return refuse(drop.BadFragment)
		}
		return refuse(drop.BadTransport)
	}
	t := d[0]
	switch p.kind = icmpKind(p.family, t); {
	case p.kind == kindEchoRequest || p.kind == kindEchoReply:
		p.localPort = binary.BigEndian.Uint16(d[4:])
	case p.fragmented: // errors, which quote too little for it, and neighbor discovery (RFC 6980)
		return refuse(drop.BadFragment)
	case p.kind == kindError:
		p.parseError(d, inside)
	case p.family == inet.V6 && t >= 133 && t <= 137:
		// Neighbor discovery (RFC 4861 §6.1, §7.1): from this link, which a hop limit of 255
		// proves. weir is a router that is told its neighbors; it hears solicitations and
		// advertisements only.
		if p.Data[header.EthernetSize+7] != 255 || t != 135 && t != 136 {
			return refuse(drop.ICMPUnsupported)
		}
		return punted
	}
	return goesOn
}

// optionsForwardable walks IPv4 options: their lengths must be right, and none may be a source
// route (RFC 7126 §4.3, §4.4).
func optionsForwardable(o []byte) bool {
	for len(o) > 0 {
		switch o[0] {
		case 0: // end of options
			return true
		case 1: // no operation
			o = o[1:]
			continue
		case 131, 137: // loose and strict source route
			return false
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return false
		}
		o = o[o[1]:]
	}
	return true
}
