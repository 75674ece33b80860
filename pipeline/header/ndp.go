// SPDX-License-Identifier: Apache-2.0

package header

import "net/netip"

// Offsets in a neighbor solicitation and advertisement (RFC 4861 §4.3, §4.4), from the ICMPv6 type
// on.
const (
	NDPFlagsOffset   = 4 // advertisement only
	NDPTargetOffset  = 8
	NDPOptionsOffset = 24
	NDPHopLimit      = 255 // anything else came through a router (RFC 4861 §7.1)
)

// Flags of an advertisement.
const (
	NDPRouter    = 0x80
	NDPSolicited = 0x40
	NDPOverride  = 0x20
)

const (
	ndpSourceLinkLayer = 1
	ndpTargetLinkLayer = 2
	ndpLinkLayerSize   = 8 // of the option, with an Ethernet address
)

var allNodes = netip.MustParseAddr("ff02::1")

// NeighborSolicitation is the ICMPv6 message.
type NeighborSolicitation []byte

// NeighborAdvertisement is the ICMPv6 message.
type NeighborAdvertisement []byte

// ParseNeighborSolicitation returns the message in ip, or false unless it passes all of RFC 4861
// §7.1.1 and is no fragment (RFC 6980 §5).
func ParseNeighborSolicitation(ip IPv6) (NeighborSolicitation, bool) {
	m, ok := parseNDP(ip, ICMPv6NeighborSolicit)
	if !ok {
		return nil, false
	}
	s := NeighborSolicitation(m)
	if ip.Src().IsUnspecified() { // duplicate address detection
		if _, found := s.LinkLayer(); found || !isSolicitedNode(ip.Dst()) {
			return nil, false
		}
	}
	return s, true
}

// ParseNeighborAdvertisement returns the message in ip, or false unless it passes all of RFC 4861
// §7.1.2 and is no fragment (RFC 6980 §5).
func ParseNeighborAdvertisement(ip IPv6) (NeighborAdvertisement, bool) {
	m, ok := parseNDP(ip, ICMPv6NeighborAdvert)
	if !ok || ip.Dst().IsMulticast() && m[NDPFlagsOffset]&NDPSolicited != 0 {
		return nil, false
	}
	return NeighborAdvertisement(m), true
}

// Target returns the address that is asked for.
func (s NeighborSolicitation) Target() netip.Addr {
	return netip.AddrFrom16([16]byte(s[NDPTargetOffset:]))
}

// LinkLayer returns the sender's Ethernet address, if an option gives it.
func (s NeighborSolicitation) LinkLayer() (MAC, bool) { return ndpLinkLayer(s, ndpSourceLinkLayer) }

// Target returns the address that is advertised.
func (a NeighborAdvertisement) Target() netip.Addr {
	return netip.AddrFrom16([16]byte(a[NDPTargetOffset:]))
}

// Flags returns the NDPRouter, NDPSolicited and NDPOverride bits.
func (a NeighborAdvertisement) Flags() uint8 {
	return a[NDPFlagsOffset] & (NDPRouter | NDPSolicited | NDPOverride)
}

// LinkLayer returns the target's Ethernet address, if an option gives it.
func (a NeighborAdvertisement) LinkLayer() (MAC, bool) { return ndpLinkLayer(a, ndpTargetLinkLayer) }

// parseNDP makes the checks that both messages share.
func parseNDP(ip IPv6, kind uint8) ([]byte, bool) {
	chain, fault := ip.Walk()
	if fault != ChainOK || chain.Protocol != ProtocolICMPv6 || chain.Fragment != 0 || ip.HopLimit() != NDPHopLimit {
		return nil, false
	}
	m := ICMPv6(ip[chain.Offset:])
	if len(m) < NDPOptionsOffset || m.Type() != kind || m.Code() != 0 ||
		!m.ChecksumOK(ip.PseudoHeader(ProtocolICMPv6, chain.Offset)) || m[NDPTargetOffset] == 0xff {
		return nil, false
	}
	for options := m[NDPOptionsOffset:]; len(options) > 0; {
		if len(options) < 2 || options[1] == 0 || int(options[1])*8 > len(options) {
			return nil, false
		}
		options = options[int(options[1])*8:]
	}
	return m, true
}

// ndpLinkLayer finds the first option of kind in a message whose options parseNDP has checked.
func ndpLinkLayer(m []byte, kind uint8) (MAC, bool) {
	for options := m[NDPOptionsOffset:]; len(options) > 0; options = options[int(options[1])*8:] {
		if options[0] == kind && int(options[1])*8 == ndpLinkLayerSize {
			return MAC(options[2:]), true
		}
	}
	return MAC{}, false
}

// SolicitedNode returns the multicast address that a solicitation for target goes to (RFC 4291
// §2.7.1).
func SolicitedNode(target netip.Addr) netip.Addr {
	a, t := [16]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff}, target.As16()
	copy(a[13:], t[13:])
	return netip.AddrFrom16(a)
}

func isSolicitedNode(a netip.Addr) bool { return a == SolicitedNode(a) }

// MulticastMAC returns the Ethernet address of an IPv6 multicast group (RFC 2464 §7).
func MulticastMAC(group netip.Addr) MAC {
	g := group.As16()
	return MAC{0x33, 0x33, g[12], g[13], g[14], g[15]}
}

// AppendNeighborSolicitation appends the IPv6 packet that asks dst, SolicitedNode(target) or a
// neighbor to probe, for target. The sender is src at mac; an unspecified src sends no link-layer
// address (RFC 4861 §4.3).
func AppendNeighborSolicitation(b []byte, mac MAC, src, dst, target netip.Addr) []byte {
	if src.IsUnspecified() {
		return appendNDP(b, ICMPv6NeighborSolicit, 0, src, dst, target, 0, MAC{})
	}
	return appendNDP(b, ICMPv6NeighborSolicit, 0, src, dst, target, ndpSourceLinkLayer, mac)
}

// AppendNeighborAdvertisement appends the IPv6 packet from src that tells dst that target is at
// mac. A dst that is unspecified, the source of a solicitation for duplicate detection, becomes all
// nodes (RFC 4861 §7.2.4); to a multicast dst the Solicited flag is cleared.
func AppendNeighborAdvertisement(b []byte, mac MAC, flags uint8, src, dst, target netip.Addr) []byte {
	if dst.IsUnspecified() {
		dst = allNodes
	}
	if dst.IsMulticast() {
		flags &^= NDPSolicited
	}
	return appendNDP(b, ICMPv6NeighborAdvert, flags, src, dst, target, ndpTargetLinkLayer, mac)
}

// appendNDP appends the packet; option 0 means that there is none.
func appendNDP(b []byte, kind, flags uint8, src, dst, target netip.Addr, option uint8, mac MAC) []byte {
	size := NDPOptionsOffset
	if option != 0 {
		size += ndpLinkLayerSize
	}
	start := len(b)
	b, m := appendIPv6(b, 0, NDPHopLimit, src, dst, size)
	m[ICMPTypeOffset] = kind
	m[NDPFlagsOffset] = flags
	*(*[16]byte)(m[NDPTargetOffset:]) = target.As16()
	if option != 0 {
		m[NDPOptionsOffset], m[NDPOptionsOffset+1] = option, ndpLinkLayerSize/8
		*(*MAC)(m[NDPOptionsOffset+2:]) = mac
	}
	finishICMPv6(b[start:])
	return b
}
