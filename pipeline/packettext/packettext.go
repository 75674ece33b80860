// SPDX-License-Identifier: Apache-2.0

// Package packettext is a small text language for packets, so that captures can be written and
// reviewed as text, with pcap files on one side and an independent verifier on the other.
//
// A line is a frame. Words are separated by spaces; what is not said has the default in
// parentheses, and lengths and checksums are right unless the line says otherwise:
//
//	MAC > MAC [vlan=TCI | qinq=TCI]... BODY       Ethernet, source first; tags 0x8100 and 0x88a8,
//	                                              outermost first
//	raw HEX                                       any bytes
//
// BODY is one of
//
//	udp A:PORT > B:PORT                           ulen=N
//	tcp A:PORT > B:PORT FLAGS                     seq= ack= urg= (0) win= (65535) doff=N and the
//	                                              options
//	                                              mss=N ws=N sackok ts=N:N nop opt=HEX, in their
//	                                              order
//	icmp echo-request A > B                       id= seq= (0); echo-reply, timestamp,
//	                                              timestamp-reply likewise
//	icmp unreachable CODE A > B                   mtu= (0) or rest=N, the 32 bits behind the
//	                                              checksum (0)
//	icmp time-exceeded CODE A > B                 rest=
//	icmp TYPE/CODE A > B                          rest=
//	icmp6 ...                                     as icmp, and icmp6 too-big A > B mtu=
//	nd solicit A > B target=A                     slla=MAC tlla=MAC ndopt=HEX, in their order;
//	                                              (ttl=255)
//	nd advert A > B target=A                      the same, and router solicited override
//	ip proto=N A > B                              any protocol; the only form for a later fragment
//	arp who-has A tell B                          sha= (Ethernet source) tha= (zero)
//	arp reply A is-at MAC to B                    tha= (Ethernet destination)
//	ether type=N                                  any other Ethernet type
//
// FLAGS is a comma-separated list of FIN SYN RST PSH ACK URG ECE CWR, or none. An IPv6 address with
// a port is written [A]:PORT. Behind udp, tcp, icmp, icmp6, nd and ip may stand, in any order,
//
//	ttl=N (64) tos=N (0)                          hop limit and traffic class in IPv6
//	frag=ID:OFFSET[:more]                         OFFSET in bytes; in IPv6 a Fragment header
//	ipid=N (0) df rf ipopt=HEX ipsum=SUM          IPv4 only; options are padded with zeros
//	flow=N (0) ext=NAME[:HEX]                     IPv6 only; headers in their order among each
//	                                              other
//	                                              and frag; HEX
//	                                              is all but the next header byte (00010400000000,
//	                                              six bytes of
//	                                              padding); NAME: hop dst route ah mobility hip
//	                                              shim6 test1
//	                                              test2 (253, 254) or a number
//	iplen=N                                       IPv4 total length, IPv6 payload length
//	sum=SUM                                       of the transport
//	cut=N                                         the IP packet ends after N bytes, whatever its
//	                                              lengths say
//
// SUM is a number or bad, a value that is surely wrong and not zero. Every body takes pad=N or
// pad=hex:HEX, bytes behind the packet, and, arp and nd apart, a payload: these in any number,
// joined in their order,
//
//	"text"                                        with Go's escapes
//	len=N                                         N zero bytes
//	hex:HEX
//	quote(udp ...)                                an IP packet, for ICMP errors
//
// Numbers are decimal, or hexadecimal with 0x. Frames are not padded to 60 bytes by themselves.
package packettext

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeVLAN = 0x8100
	typeIPv6 = 0x86dd
	typeQinQ = 0x88a8

	protoHop    = 0
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoRoute  = 43
	protoFrag   = 44
	protoAH     = 51
	protoICMP6  = 58
	protoDst    = 60
	protoMobile = 135
	protoHIP    = 139
	protoShim6  = 140
	protoTest1  = 253
	protoTest2  = 254

	protoDCCP    = 33
	protoUDPLite = 136

	ttlDefault = 64
	ttlND      = 255
	windowFull = 65535
	maxNesting = 4 // of quote(...)
)

// extensions names the IPv6 extension headers that ext= and the verifier know.
var extensions = map[string]byte{"hop": protoHop, "dst": protoDst, "route": protoRoute, "ah": protoAH,
	"mobility": protoMobile, "hip": protoHIP, "shim6": protoShim6, "test1": protoTest1, "test2": protoTest2}

// isExtension reports whether an IPv6 next header is an extension header other than Fragment (the
// IANA registry's, without ESP).
func isExtension(next byte) bool {
	for _, n := range extensions {
		if n == next {
			return true
		}
	}
	return false
}

var tcpFlags = [8]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func at16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
func at32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// onesSum adds the 16-bit words of the joined parts, RFC 1071 to the letter.
func onesSum(parts ...[]byte) uint16 {
	all := bytes.Join(parts, nil)
	if len(all)%2 == 1 {
		all = append(all, 0)
	}
	sum := uint32(0)
	for i := 0; i < len(all); i += 2 {
		sum += uint32(at16(all[i:]))
		if sum > 0xffff {
			sum -= 0xffff // the carry comes back at the other end
		}
	}
	return uint16(sum)
}

// pseudoHeader is the one of RFC 9293 §3.1 or RFC 8200 §8.1.
func pseudoHeader(src, dst netip.Addr, proto byte, length int) []byte {
	if src.Is4() {
		return bytes.Join([][]byte{src.AsSlice(), dst.AsSlice(), {0, proto}, be16(uint16(length))}, nil)
	}
	return bytes.Join([][]byte{src.AsSlice(), dst.AsSlice(), be32(uint32(length)), {0, 0, 0, proto}}, nil)
}

// transportSum returns what the checksum field of transport, a whole header and its payload, should
// hold, and where that field is; at is -1 for a protocol without one.
func transportSum(src, dst netip.Addr, proto byte, transport []byte) (sum uint16, at int) {
	covered, pseudo := transport, pseudoHeader(src, dst, proto, len(transport))
	switch {
	case proto == protoTCP:
		at = 16
	case proto == protoUDP:
		at = 6
		n := int(at16(transport[4:]))
		pseudo = pseudoHeader(src, dst, proto, n)
		if 8 <= n && n < len(transport) {
			covered = transport[:n]
		}
	case proto == protoICMP && src.Is4():
		at, pseudo = 2, nil
	case proto == protoICMP6 && !src.Is4():
		at = 2
	default:
		return 0, -1
	}
	covered = bytes.Clone(covered)
	copy(covered[at:], []byte{0, 0})
	sum = ^onesSum(pseudo, covered)
	if sum == 0 && proto == protoUDP {
		sum = 0xffff // RFC 768: 0 means none
	}
	return sum, at
}

// badSum is the SUM named bad: not right is and not zero.
func badSum(right uint16) uint16 {
	if right == 0xffff {
		return 1
	}
	return right + 1
}
