// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// shimSize is the size of VXLAN's and Geneve's headers, without options.
const shimSize = 8

// decap takes the outer headers off a packet for a port where tunnels end: VXLAN (RFC 7348) and
// Geneve (RFC 8926). tunnel reports whether it is for such a tunnel at all; what is not belongs to
// the underlay. The outer UDP checksum is not verified: what it covers is checked by the inner
// packet's own checksums.
func (w *Worker) decap(port *generation.Port, index int, p *Packet) (r drop.Reason, tunnel bool) {
	d := p.Data
	var src inet.Addr
	var n int // of Ethernet and IP header
	var ecn byte
	switch binary.BigEndian.Uint16(d[12:]) {
	case header.EtherTypeIPv4:
		if len(d) < header.EthernetSize+header.IPv4Size {
			return drop.Pass, false
		}
		ip := d[header.EthernetSize:]
		n = header.EthernetSize + int(ip[0]&0xf)*4
		if ip[0]>>4 != 4 || n < header.EthernetSize+header.IPv4Size || ip[9] != header.ProtocolUDP || inet.From4(ip[16:]) != port.Ends[inet.V4] {
			return drop.Pass, false
		}
		total := int(binary.BigEndian.Uint16(ip[2:]))
		if header.EthernetSize+total > len(d) || header.EthernetSize+total < n {
			return drop.TunnelLength, true
		}
		if n == header.EthernetSize+header.IPv4Size {
			if !sumOK((*[header.IPv4Size]byte)(ip)) {
				return drop.TunnelChecksum, true
			}
		} else if header.Checksum(ip[:n-header.EthernetSize], 0) != 0xffff {
			return drop.TunnelChecksum, true
		}
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
			return drop.TunnelFragment, true
		}
		d = d[:header.EthernetSize+total]
		src, ecn = inet.From4(ip[12:]), ip[1]&3
	case header.EtherTypeIPv6:
		n = header.EthernetSize + header.IPv6Size
		if len(d) < n {
			return drop.Pass, false
		}
		ip := d[header.EthernetSize:]
		if ip[0]>>4 != 6 || inet.From16(ip[24:40]) != port.Ends[inet.V6] {
			return drop.Pass, false
		}
		if ip[6] == 44 && len(ip) > header.IPv6Size && ip[header.IPv6Size] == header.ProtocolUDP { // a Fragment header
			return drop.TunnelFragment, true
		}
		if ip[6] != header.ProtocolUDP {
			return drop.Pass, false
		}
		total := header.IPv6Size + int(binary.BigEndian.Uint16(ip[4:]))
		if header.EthernetSize+total > len(d) {
			return drop.TunnelLength, true
		}
		d = d[:header.EthernetSize+total]
		src, ecn = inet.From16(ip[8:24]), ip[1]>>4&3
	default:
		return drop.Pass, false
	}
	udp := d[n:]
	if len(udp) < header.UDPSize {
		return drop.TunnelLength, true
	}
	kind := attach.VXLAN
	switch binary.BigEndian.Uint16(udp[2:]) {
	case 0:
		return drop.Pass, false
	case port.UDP[0]:
	case port.UDP[1]:
		kind = attach.Geneve
	default:
		return drop.Pass, false
	}
	mac := w.macs[index]
	dst, from := binary.LittleEndian.Uint64(d)&state.MACMask, binary.LittleEndian.Uint64(d[4:])>>16
	switch {
	case dst != mac && !w.anyMAC:
		return drop.NotOurMAC, true
	case from&state.MACGroup != 0 || from == 0 || from == mac:
		return drop.Martian, true
	case int(binary.BigEndian.Uint16(udp[4:])) != len(udp) || len(udp) < header.UDPSize+shimSize:
		return drop.TunnelLength, true
	}
	shim := udp[header.UDPSize:]
	size := shimSize
	if kind == attach.VXLAN {
		if shim[0]&0x08 == 0 {
			return drop.TunnelVersion, true
		}
	} else {
		var r drop.Reason
		if size, r = geneve(shim); r != drop.Pass {
			return r, true
		}
	}
	at := attach.Make(index, kind, binary.BigEndian.Uint32(shim[4:])>>8)
	i, known := w.gen.Attachment(at)
	if !known {
		return drop.TunnelVNI, true
	}
	h := w.gen.Host(generation.EndpointDomain(i), src)
	if h == nil {
		return drop.TunnelPeer, true
	}
	inner := shim[size:]
	if len(inner) < header.EthernetSize {
		return drop.TunnelInner, true
	}
	switch binary.BigEndian.Uint16(inner[12:]) {
	case header.EtherTypeVLAN, header.EtherTypeQinQ, 0x9100:
		return drop.TunnelInnerTag, true
	}
	if ecn != 0 && !congested(inner, ecn) {
		return drop.TunnelECN, true
	}
	p.from, p.via = generation.Place{At: at, Index: i}, uint16(h.Index)
	p.Front += uint16(len(d) - len(inner))
	p.Data = inner
	return drop.Pass, true
}

// geneve returns how long a Geneve header is with its options, or why it is refused (RFC 8926 §3.4,
// §3.5).
func geneve(shim []byte) (size int, r drop.Reason) {
	size = shimSize + int(shim[0]&0x3f)*4
	switch {
	case shim[0]>>6 != 0:
		return 0, drop.TunnelVersion
	case shim[1]&0x80 != 0:
		return 0, drop.TunnelControl
	case size > len(shim):
		return 0, drop.TunnelOptions
	case shim[1]&0x40 != 0:
		return 0, drop.TunnelCritical
	case binary.BigEndian.Uint16(shim[2:]) != generation.EtherTypeBridged:
		return 0, drop.TunnelInner
	}
	for at := shimSize; at < size; {
		n := 4 + int(shim[at+3]&0x1f)*4
		if at+n > size {
			return 0, drop.TunnelOptions
		}
		if shim[at+2]&0x80 != 0 { // although the header says that there is none
			return 0, drop.TunnelCritical
		}
		at += n
	}
	return size, drop.Pass
}

// congested brings what the underlay says of congestion into the inner packet (RFC 6040 §4.2), or
// reports that it must not be forwarded.
func congested(inner []byte, ecn byte) bool {
	ip := inner[header.EthernetSize:]
	const ect1, ce = 1, 3
	switch binary.BigEndian.Uint16(inner[12:]) {
	case header.EtherTypeIPv4:
		if len(ip) < header.IPv4Size {
			return true // parse says what is wrong
		}
		was := ip[1] & 3
		if was == 0 {
			return ecn != ce
		}
		if is := ip[1]&^3 | ecn; was != ce && (ecn == ce || ecn == ect1) && is != ip[1] {
			sum := header.Delta(0).Replace16(uint16(ip[0])<<8|uint16(ip[1]), uint16(ip[0])<<8|uint16(is))
			binary.BigEndian.PutUint16(ip[10:], sum.Apply(binary.BigEndian.Uint16(ip[10:])))
			ip[1] = is
		}
	case header.EtherTypeIPv6:
		if len(ip) < header.IPv6Size {
			return true
		}
		was := ip[1] >> 4 & 3
		if was == 0 {
			return ecn != ce
		}
		if was != ce && (ecn == ce || ecn == ect1) {
			ip[1] = ip[1]&0xcf | ecn<<4
		}
	default:
		return ecn != ce
	}
	return true
}

// encap queues a frame in a tunnel packet. The caller knows that there is room, and that the outer
// neighbor is resolved.
func (w *Worker) encap(to way, mac uint64, f *parcel) {
	l := &w.gen.Links[to.link]
	port := to.at.Port()
	src := w.station(to.link, w.macs[port])
	e := (*[header.EthernetSize]byte)(f.frame)
	binary.LittleEndian.PutUint64(e[:], mac|src<<48)
	binary.LittleEndian.PutUint32(e[8:], uint32(src>>16))
	n := int(l.Size)
	frame := grow(f.frame, header.EthernetSize+n)
	if n == generation.MaxOuter {
		*(*[generation.MaxOuter]byte)(frame[header.EthernetSize:]) = l.Header
	} else {
		const short = generation.MaxOuter - header.IPv6Size + header.IPv4Size
		*(*[short]byte)(frame[header.EthernetSize:]) = *(*[short]byte)(l.Header[:])
	}
	l.Finish(frame, to.at.Tag(), 49152|f.flow&0x3fff)
	w.queue(port, w.resolved(l.Neighbor), f.handle, frame)
}

// station returns weir's own MAC in the frames of a link: the tunnel's, or that of the port.
func (w *Worker) station(link uint16, port uint64) uint64 {
	if mac := w.gen.Links[link].Inner; mac != 0 {
		return mac
	}
	return port
}

// speaks reports whether an ARP message or neighbor discovery that came through a tunnel comes from
// the host of the instance that it speaks for. Who probes for an address of its own speaks for
// nobody yet.
func (w *Worker) speaks(p *Packet) bool {
	var a inet.Addr
	d := p.Data[header.EthernetSize:]
	switch binary.BigEndian.Uint16(p.Data[12:]) {
	case header.EtherTypeARP:
		if len(d) < 28 {
			return true // control finds it malformed
		}
		if a = inet.From4(d[14:]); binary.BigEndian.Uint32(d[14:]) == 0 {
			return true
		}
	default:
		a = inet.From16(d[8:24])
		if at := int(p.transport) - header.EthernetSize; d[at] == 136 && len(d) >= at+24 { // what it advertises counts
			a = inet.From16(d[at+8:])
		}
		if a == (inet.Addr{}) {
			return true
		}
	}
	h := w.gen.Host(w.vpc(p)+1, a)
	return h != nil && h.Kind == generation.HostInstance && w.gen.Hosted(&w.gen.Instances[h.Index], a.Family(), p.via)
}

const _ = config.VXLAN // the kinds are in one order in config, attach and generation.Port.UDP
