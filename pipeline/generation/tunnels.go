// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// EtherTypeBridged is Geneve's protocol type of Ethernet frames (RFC 8926 §3.4).
const EtherTypeBridged = 0x6558

// maxLinks is how many a session can tell apart.
const maxLinks = 1 << 16

// EndpointDomain is the domain of the endpoints that an attachment's packets come from.
func EndpointDomain(attachment uint32) uint32 { return ^attachment }

// buildEnds notes where the tunnels of an inside port end, and how they get away from there.
func (b *builder) buildEnds(port int, rec *Port) error {
	p := &b.cfg.Ports[port]
	for _, a := range p.Addresses {
		rec.Ends[familyOf(a.Addr())] = inet.FromNetip(a.Addr())
	}
	for _, h := range p.NextHops {
		hop, err := b.hop(attach.Port(port), h)
		if err != nil {
			return err
		}
		b.Routers = append(b.Routers, hop)
	}
	return nil
}

// endpoint compiles the link to an endpoint of a tunnel.
func (b *builder) endpoint(a *config.Attachment, endpoint netip.Addr) (uint16, error) {
	p, t := &b.cfg.Ports[a.Port], &a.Tunnel
	i := slices.IndexFunc(p.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == endpoint.Is4() })
	l := Link{
		MTU: uint16(p.MTU - config.TunnelOverhead(endpoint.Is6())), Inner: state.MACWord(t.MAC),
		Endpoint: inet.FromNetip(endpoint), Hop: inet.FromNetip(endpoint),
	}
	if t.DSCP == config.CopyDSCP {
		l.Flags |= CopyDSCP
	}
	var mac config.MAC
	if !p.Addresses[i].Masked().Contains(endpoint) {
		h := slices.IndexFunc(p.NextHops, func(h config.NextHop) bool { return h.Address.Is4() == endpoint.Is4() })
		if h < 0 {
			return 0, fmt.Errorf("port %q: host %v is in none of its prefixes, and no next hop leads there", p.Name, endpoint)
		}
		l.Hop, mac = inet.FromNetip(p.NextHops[h].Address), p.NextHops[h].MAC
	}
	var err error
	if l.Neighbor, err = b.neighbor(attach.Port(a.Port), l.Hop, mac); err != nil {
		return 0, err
	}
	l.outer(t, a.Encap, p.Addresses[i].Addr(), endpoint)
	n := b.link(l)
	if len(b.Links) > maxLinks {
		return 0, fmt.Errorf("more than %d ways to instances; give tunnels fewer endpoints or the same settings", maxLinks)
	}
	return n, nil
}

// outer writes what is the same in all outer headers: lengths, DSCP, flow and VNI come later.
func (l *Link) outer(t *config.Tunnel, encap config.Encap, src, dst netip.Addr) {
	h := l.Header[:]
	n := header.IPv4Size
	dscp := uint16(t.DSCP) << 2
	if t.DSCP == config.CopyDSCP {
		dscp = 0
	}
	if src.Is4() {
		h[0], h[1] = 0x45, byte(dscp)
		binary.BigEndian.PutUint16(h[6:], 0x4000) // DF
		h[8], h[9] = 64, header.ProtocolUDP
		s, d := src.As4(), dst.As4()
		copy(h[12:], s[:])
		copy(h[16:], d[:])
		l.Sum = uint32(header.Checksum(h[:header.IPv4Size], 0))
	} else {
		n = header.IPv6Size
		binary.BigEndian.PutUint32(h, 6<<28|uint32(dscp)<<20)
		h[6], h[7] = header.ProtocolUDP, 64
		s, d := src.As16(), dst.As16()
		copy(h[8:], s[:])
		copy(h[24:], d[:])
		if !t.ZeroChecksum {
			l.Flags |= FullUDP
		}
	}
	binary.BigEndian.PutUint16(h[n+2:], t.UDPPort)
	n += header.UDPSize
	if encap == config.VXLAN {
		h[n] = 0x08 // the VNI is valid
	} else {
		binary.BigEndian.PutUint16(h[n+2:], EtherTypeBridged)
	}
	l.Size = uint8(n + 8)
}

// hosts compiles the endpoints of an instance behind a tunnel.
func (b *builder) hosts(rec *Instance, f int, in *config.Instance, a *config.Attachment) error {
	rec.Hosts[f] = span{uint32(len(b.Endpoints)), uint32(len(in.Hosts))}
	index := b.Tables.attachmentIndex(WordOf(a))
	for _, h := range in.Hosts {
		n, err := b.endpoint(a, h)
		if err != nil {
			return err
		}
		b.Endpoints = append(b.Endpoints, n)
		if k := (endpointKey{index, h}); !b.endpoints[k] {
			b.endpoints[k] = true
			b.hostList = append(b.hostList, Host{Addr: inet.FromNetip(h), Domain: EndpointDomain(index), Kind: HostLink, Index: uint32(n)})
		}
	}
	return nil
}

// endpointKey is an endpoint that is noted already.
type endpointKey struct {
	attachment uint32
	addr       netip.Addr
}

// attachmentIndex is Attachment before the table of tags is made. VPCs are compiled one after the
// other: it is one of the last.
func (t *Tables) attachmentIndex(at attach.Word) uint32 {
	for i := len(t.Attachments) - 1; i >= 0; i-- {
		if t.Attachments[i].At == at {
			return uint32(i)
		}
	}
	return 0
}

// Hosted reports whether packets of an instance may come by a link.
func (g *Generation) Hosted(in *Instance, f inet.Family, link uint16) bool {
	for _, l := range g.Endpoints[in.Hosts[f].First:in.Hosts[f].End()] {
		if l == link {
			return true
		}
	}
	return false
}

// Wrap puts the outer header of a link, and the Ethernet header of the underlay, before an inner
// frame. flow chooses the source port. It is for frames of weir's own: those of packets are wrapped
// in their buffers.
func (l *Link) Wrap(frame []byte, vni uint32, flow uint16, src, dst config.MAC) []byte {
	n := int(l.Size)
	b := make([]byte, 0, header.EthernetSize+n+len(frame))
	b = append(append(b, dst[:]...), src[:]...)
	b = append(b, 0, 0)
	b = append(append(b, l.Header[:n]...), frame...)
	l.Finish(b, vni, 49152|flow&0x3fff)
	return b
}

// Finish fills in what varies of an outer header that stands in b behind an Ethernet header, and
// before the inner frame.
func (l *Link) Finish(b []byte, vni uint32, sport uint16) {
	n := int(l.Size)
	ip := b[header.EthernetSize:]
	size := uint16(len(ip))
	inner := ip[n:]
	tos := byte(0) // the inner packet's
	v6 := n == MaxOuter
	switch payload := inner[header.EthernetSize:]; binary.BigEndian.Uint16(inner[12:]) {
	case header.EtherTypeIPv4:
		tos = payload[1]
	case header.EtherTypeIPv6:
		tos = payload[0]<<4 | payload[1]>>4
	}
	if l.Flags&CopyDSCP == 0 {
		tos &= 3 // ECN is always copied (RFC 6040 §4.1)
	}
	binary.BigEndian.PutUint32(ip[n-4:], vni<<8)
	udp := ip[n-16:]
	binary.BigEndian.PutUint16(udp, sport)
	if !v6 {
		binary.BigEndian.PutUint16(b[12:], header.EtherTypeIPv4)
		ip[1] |= tos
		binary.BigEndian.PutUint16(ip[2:], size)
		binary.BigEndian.PutUint16(udp[4:], size-header.IPv4Size)
		binary.BigEndian.PutUint16(ip[10:], header.Mend(0xffff, l.Sum+uint32(tos)+uint32(size)))
		return
	}
	binary.BigEndian.PutUint16(b[12:], header.EtherTypeIPv6)
	ip[0] |= tos >> 4
	ip[1] |= tos << 4
	binary.BigEndian.PutUint16(ip[4:], size-header.IPv6Size)
	binary.BigEndian.PutUint16(udp[4:], size-header.IPv6Size)
	if l.Flags&FullUDP != 0 {
		sum := header.Checksum(ip[8:n], 0) // addresses, UDP header, and that of the tunnel
		sum = header.Checksum([]byte{0, header.ProtocolUDP, byte((size - header.IPv6Size) >> 8), byte(size - header.IPv6Size)}, sum)
		if sum = ^header.Checksum(inner[:header.EthernetSize], innerSum(inner, sum)); sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(udp[6:], sum)
	}
}

// innerSum adds the sum of what an inner frame has behind its Ethernet header. Where a transport
// checksum covers the rest, that adds up to the complement of its pseudo-header, so nobody reads
// the payload (local checksum offload).
func innerSum(frame []byte, sum uint16) uint16 {
	p := frame[header.EthernetSize:]
	var addresses []byte
	var proto byte
	n := 0 // of the IP header
	switch binary.BigEndian.Uint16(frame[12:]) {
	case header.EtherTypeIPv4:
		if p[0] != 0x45 || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
			return header.Checksum(p, sum)
		}
		addresses, proto, n = p[12:20], p[9], header.IPv4Size
	case header.EtherTypeIPv6:
		addresses, proto, n = p[8:40], p[6], header.IPv6Size
	default:
		return header.Checksum(p, sum)
	}
	t := p[n:]
	switch {
	case proto == header.ProtocolUDP && len(t) >= header.UDPSize && t[6]|t[7] != 0 && int(binary.BigEndian.Uint16(t[4:])) == len(t):
	case proto == header.ProtocolTCP && len(t) >= header.TCPSize:
	default:
		return header.Checksum(p, sum)
	}
	pseudo := header.Checksum(addresses, uint16(proto))
	pseudo = header.Checksum([]byte{byte(len(t) >> 8), byte(len(t))}, pseudo)
	if n == header.IPv6Size {
		sum = header.Checksum(p[:n], sum)
	} // else the header adds up to 0xffff, which is nothing
	return header.Checksum([]byte{byte(^pseudo >> 8), byte(^pseudo)}, sum)
}
