// SPDX-License-Identifier: Apache-2.0

package header

import "net/netip"

// What a gateway's own packets carry.
const (
	OwnTTL        = 64
	ICMPErrorTOS  = 0xc0 // precedence 6, internetwork control (RFC 1812 §4.3.2.5)
	MaxICMPv4Size = 576  // an error's whole packet (RFC 1812 §4.3.2.3)
	MaxICMPv6Size = 1280 // an error's whole packet (RFC 4443 §2.4(c))
	minMTUv4      = 68   // RFC 791 §3.2
	minMTUv6      = 1280 // RFC 8200 §5
)

// ICMPError is an error that a gateway sends about a packet, of either family.
type ICMPError uint8

const (
	HostUnreachable ICMPError = iota // 3/1, ICMPv6 1/3
	PacketTooBig                     // 3/4, ICMPv6 2/0
	Prohibited                       // 3/13, ICMPv6 1/1
	TimeExceeded                     // 11/0, ICMPv6 3/0
	numICMPErrors
)

var icmpErrors = [numICMPErrors]struct {
	name           string
	v4Type, v4Code uint8
	v6Type, v6Code uint8
}{
	HostUnreachable: {"host unreachable", ICMPv4Unreachable, 1, ICMPv6Unreachable, 3},
	PacketTooBig:    {"packet too big", ICMPv4Unreachable, 4, ICMPv6PacketTooBig, 0},
	Prohibited:      {"administratively prohibited", ICMPv4Unreachable, 13, ICMPv6Unreachable, 1},
	TimeExceeded:    {"time exceeded", ICMPv4TimeExceeded, 0, ICMPv6TimeExceeded, 0},
}

func (e ICMPError) String() string {
	if e < numICMPErrors {
		return icmpErrors[e].name
	}
	return "unknown ICMP error"
}

// MayAnswerIPv4 reports whether an ICMP error may be sent about ip, which came in a frame to l2dst
// (RFC 1812 §4.3.2.7): not about ICMP errors, non-first fragments, packets to a multicast,
// broadcast or reserved address of either layer, or from a source that is no single host. An ICMP
// type that is no known query counts as an error. A directed broadcast (RFC 1812 §5.3.5.2) is the
// caller's to know.
func MayAnswerIPv4(ip IPv4, l2dst MAC) bool {
	if l2dst.IsGroup() || ip[IPv4DstOffset] >= 224 || ip[IPv4DstOffset] == 0 {
		return false
	}
	if net := ip[IPv4SrcOffset]; net == 0 || net == 127 || net >= 224 {
		return false
	}
	if ip.FragmentOffset() != 0 {
		return false
	}
	if ip.Protocol() != ProtocolICMP {
		return true
	}
	payload := ip.Payload()
	if len(payload) == 0 {
		return false
	}
	switch payload[ICMPTypeOffset] {
	case ICMPv4EchoReply, ICMPv4EchoRequest, ICMPv4RouterAdvert, ICMPv4RouterSolicit, ICMPv4Timestamp,
		ICMPv4TimestampReply, ICMPv4InfoRequest, ICMPv4InfoReply, ICMPv4MaskRequest, ICMPv4MaskReply:
		return true
	}
	return false
}

// MayAnswerIPv6 reports whether e may be sent about ip, which came in a frame to l2dst (RFC 4443
// §2.4(e)): not about ICMPv6 errors, redirects, non-first fragments, packets to a multicast address
// of either layer (unless e is PacketTooBig), from a source that is no single host, or whose
// extension headers are refused.
func MayAnswerIPv6(ip IPv6, l2dst MAC, e ICMPError) bool {
	src, dst := ip.Src(), ip.Dst()
	if e != PacketTooBig && (l2dst.IsGroup() || dst.IsMulticast()) || l2dst == Broadcast || dst.IsUnspecified() {
		return false
	}
	if src.IsUnspecified() || src.IsMulticast() || src.IsLoopback() {
		return false
	}
	chain, fault := ip.Walk()
	if fault != ChainOK || chain.FragmentOffset != 0 {
		return false
	}
	if chain.Protocol != ProtocolICMPv6 {
		return true
	}
	payload := ip[chain.Offset:]
	return len(payload) > 0 && !ICMPv6(payload).IsError() && payload[ICMPTypeOffset] != ICMPv6Redirect
}

// AppendICMPv4Error appends the IPv4 packet from src that tells the sender of about of e, quoting
// as much of it as MaxICMPv4Size allows. mtu is the next hop's, for PacketTooBig (RFC 1191 §4), at
// least 68. The caller has asked MayAnswerIPv4, and src is an IPv4 address.
func AppendICMPv4Error(b []byte, e ICMPError, src netip.Addr, mtu uint16, about IPv4) []byte {
	quote := about[:min(len(about), MaxICMPv4Size-IPv4Size-ICMPSize)]
	b, m := appendIPv4(b, ICMPErrorTOS, ProtocolICMP, src, about.Src(), ICMPSize+len(quote))
	m[ICMPTypeOffset], m[ICMPCodeOffset] = icmpErrors[e].v4Type, icmpErrors[e].v4Code
	if e == PacketTooBig {
		put16(m[6:], max(mtu, minMTUv4))
	}
	copy(m[ICMPSize:], quote)
	put16(m[ICMPChecksumOffset:], ^Checksum(m, 0))
	return b
}

// AppendICMPv6Error appends the IPv6 packet from src that tells the sender of about of e, quoting
// as much of it as MaxICMPv6Size allows. mtu is the next hop's, for PacketTooBig, at least 1280.
// The caller has asked MayAnswerIPv6.
func AppendICMPv6Error(b []byte, e ICMPError, src netip.Addr, mtu uint32, about IPv6) []byte {
	quote := about[:min(len(about), MaxICMPv6Size-IPv6Size-ICMPSize)]
	start := len(b)
	b, m := appendIPv6(b, 0, OwnTTL, src, about.Src(), ICMPSize+len(quote))
	m[ICMPTypeOffset], m[ICMPCodeOffset] = icmpErrors[e].v6Type, icmpErrors[e].v6Code
	if e == PacketTooBig {
		put32(m[4:], max(mtu, minMTUv6))
	}
	copy(m[ICMPSize:], quote)
	finishICMPv6(b[start:])
	return b
}

// AppendTCPReset appends the packet that answers a segment of no connection, of either family, from
// src, where the segment was sent (RFC 9293 §3.10.7.1). t is at least the segment's header; length
// is that of all of it. The caller has made sure that it is no reset.
func AppendTCPReset(b []byte, src, dst netip.Addr, t TCP, length int) []byte {
	var r TCP
	var sum uint16
	start := len(b)
	if src.Is4() {
		b, r = appendIPv4(b, 0, ProtocolTCP, src, dst, TCPSize)
		sum = IPv4(b[start:]).PseudoHeader()
	} else {
		b, r = appendIPv6(b, 0, OwnTTL, src, dst, TCPSize)
		ip := IPv6(b[start:])
		ip.SetNextHeader(ProtocolTCP)
		sum = ip.PseudoHeader(ProtocolTCP, IPv6Size)
	}
	r.SetSrcPort(t.DstPort())
	r.SetDstPort(t.SrcPort())
	r[TCPDataOffsetOffset] = TCPSize / 4 << 4
	if flags := t.Flags(); flags&TCPAck != 0 {
		r.SetSeq(t.Ack())
		r.SetFlags(TCPRst)
	} else {
		end := t.Seq() + uint32(length-t.HeaderLength())
		if flags&TCPSyn != 0 {
			end++
		}
		if flags&TCPFin != 0 {
			end++
		}
		r.SetAck(end)
		r.SetFlags(TCPRst | TCPAck)
	}
	r.SetChecksum(^Checksum(r, sum))
	return b
}

// AppendEchoReplyIPv4 appends the IPv4 packet that answers request, or returns false if that is no
// whole, intact echo request. Options are not copied. Whether to answer, by address and rate, the
// caller decides.
func AppendEchoReplyIPv4(b []byte, request IPv4) ([]byte, bool) {
	ping, ok := ParseICMPv4(request.Payload())
	if !ok || request.Protocol() != ProtocolICMP || request.IsFragment() || !ping.ChecksumOK() ||
		ping.Type() != ICMPv4EchoRequest || ping.Code() != 0 {
		return b, false
	}
	b, m := appendIPv4(b, request.TOS(), ProtocolICMP, request.Dst(), request.Src(), len(ping))
	copy(m, ping)
	m[ICMPTypeOffset] = ICMPv4EchoReply
	put16(m[ICMPChecksumOffset:], 0)
	put16(m[ICMPChecksumOffset:], ^Checksum(m, 0))
	return b, true
}

// AppendEchoReplyIPv6 appends the IPv6 packet that answers request, or returns false if that is no
// whole, intact echo request. Extension headers are not copied. Whether to answer, by address and
// rate, the caller decides.
func AppendEchoReplyIPv6(b []byte, request IPv6) ([]byte, bool) {
	chain, fault := request.Walk()
	if fault != ChainOK || chain.Protocol != ProtocolICMPv6 || chain.IsFragment() {
		return b, false
	}
	ping, ok := ParseICMPv6(request[chain.Offset:])
	if !ok || ping.Type() != ICMPv6EchoRequest || ping.Code() != 0 ||
		!ping.ChecksumOK(request.PseudoHeader(ProtocolICMPv6, chain.Offset)) {
		return b, false
	}
	start := len(b)
	b, m := appendIPv6(b, request.TrafficClass(), OwnTTL, request.Dst(), request.Src(), len(ping))
	copy(m, ping)
	m[ICMPTypeOffset] = ICMPv6EchoReply
	finishICMPv6(b[start:])
	return b, true
}

// appendIPv4 appends a header and n zero bytes behind it, and returns those too. The packet is
// atomic: DF set, so its identification of 0 needs no care (RFC 6864 §4.1).
func appendIPv4(b []byte, tos, protocol uint8, src, dst netip.Addr, n int) (all, payload []byte) {
	b, packet := grow(b, IPv4Size+n)
	ip := IPv4(packet)
	ip[0] = 0x45
	ip.SetTOS(tos)
	ip.SetTotalLength(uint16(len(packet)))
	ip.SetFragment(IPv4DontFragment, 0)
	ip.SetTTL(OwnTTL)
	ip.SetProtocol(protocol)
	ip.SetSrc(src)
	ip.SetDst(dst)
	ip.UpdateChecksum()
	return b, packet[IPv4Size:]
}

// appendIPv6 appends a header for ICMPv6 and n zero bytes behind it, and returns those too.
func appendIPv6(b []byte, trafficClass, hopLimit uint8, src, dst netip.Addr, n int) (all, payload []byte) {
	b, packet := grow(b, IPv6Size+n)
	ip := IPv6(packet)
	ip[0] = 0x60
	ip.SetTrafficClass(trafficClass)
	ip.SetPayloadLength(uint16(n))
	ip.SetNextHeader(ProtocolICMPv6)
	ip.SetHopLimit(hopLimit)
	ip.SetSrc(src)
	ip.SetDst(dst)
	return b, packet[IPv6Size:]
}

// finishICMPv6 writes the checksum of the message right behind the header.
func finishICMPv6(ip IPv6) {
	m := ICMPv6(ip.Payload())
	m.SetChecksum(0)
	m.SetChecksum(^Checksum(m, ip.PseudoHeader(ProtocolICMPv6, IPv6Size)))
}
