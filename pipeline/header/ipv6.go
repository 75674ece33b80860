// SPDX-License-Identifier: Apache-2.0

package header

import "net/netip"

// Offsets in an IPv6 header (RFC 8200 §3).
//
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Version| Traffic Class |           Flow Label                  |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|         Payload Length        |  Next Header  |   Hop Limit   |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                   Source Address, 16 bytes                    |
//	|                Destination Address, 16 bytes                  |
const (
	IPv6PayloadLengthOffset = 4
	IPv6NextHeaderOffset    = 6
	IPv6HopLimitOffset      = 7
	IPv6SrcOffset           = 8
	IPv6DstOffset           = 24
	IPv6Size                = 40
)

// IPv6FragmentSize is the length of a Fragment extension header.
const IPv6FragmentSize = 8

// IPv6 is a packet, header and payload.
type IPv6 []byte

// ParseIPv6 returns b as an IPv6 packet, or false if any length in its fixed header lies. What
// follows the packet, such as Ethernet padding, is cut off.
func ParseIPv6(b []byte) (IPv6, bool) {
	if len(b) < IPv6Size || b[0]>>4 != 6 {
		return nil, false
	}
	total := IPv6Size + int(get16(b[IPv6PayloadLengthOffset:]))
	if total > len(b) {
		return nil, false
	}
	return IPv6(b[:total]), true
}

func (ip IPv6) TrafficClass() uint8   { return uint8(get16(ip) >> 4) }
func (ip IPv6) FlowLabel() uint32     { return get32(ip) & 0xfffff }
func (ip IPv6) PayloadLength() uint16 { return get16(ip[IPv6PayloadLengthOffset:]) }
func (ip IPv6) NextHeader() uint8     { return ip[IPv6NextHeaderOffset] }
func (ip IPv6) HopLimit() uint8       { return ip[IPv6HopLimitOffset] }
func (ip IPv6) Src() netip.Addr       { return netip.AddrFrom16([16]byte(ip[IPv6SrcOffset:])) }
func (ip IPv6) Dst() netip.Addr       { return netip.AddrFrom16([16]byte(ip[IPv6DstOffset:])) }
func (ip IPv6) Payload() []byte       { return ip[IPv6Size:] }

func (ip IPv6) SetTrafficClass(v uint8)   { put32(ip, get32(ip)&^0x0ff00000|uint32(v)<<20) }
func (ip IPv6) SetFlowLabel(v uint32)     { put32(ip, get32(ip)&^0xfffff|v&0xfffff) }
func (ip IPv6) SetPayloadLength(v uint16) { put16(ip[IPv6PayloadLengthOffset:], v) }
func (ip IPv6) SetNextHeader(v uint8)     { ip[IPv6NextHeaderOffset] = v }
func (ip IPv6) SetHopLimit(v uint8)       { ip[IPv6HopLimitOffset] = v }
func (ip IPv6) SetSrc(a netip.Addr)       { *(*[16]byte)(ip[IPv6SrcOffset:]) = a.As16() }
func (ip IPv6) SetDst(a netip.Addr)       { *(*[16]byte)(ip[IPv6DstOffset:]) = a.As16() }

// PseudoHeader returns the sum of the pseudo-header for a transport at offset. The destination is
// the header's own, which with a routing header that has segments left is not the final one.
func (ip IPv6) PseudoHeader(protocol uint8, offset int) uint16 {
	return PseudoHeader(ip[IPv6SrcOffset:IPv6DstOffset], ip[IPv6DstOffset:IPv6Size], protocol, len(ip)-offset)
}

// Chain is what lies behind a packet's extension headers.
type Chain struct {
	Protocol uint8 // of the transport; behind a non-first fragment, the next header of its Fragment header
	Offset   int   // where that begins, from the start of the IPv6 header; at most the packet's length

	Fragment       int    // where the Fragment header begins, 0: there is none
	FragmentOffset int    // where the bytes behind it lie in their datagram
	MoreFragments  bool   // it is not the last one
	ID             uint32 // the datagram's identification

	// Pinned: an AH covers the addresses (RFC 4302 §3.3.3), or a routing header has segments left,
	// so that the destination is not the transport's. Neither survives a translation.
	Pinned bool
}

// IsFragment reports whether the packet is not a whole datagram. An atomic fragment (RFC 6946) is
// whole.
func (c Chain) IsFragment() bool { return c.FragmentOffset != 0 || c.MoreFragments }

// ChainFault says why a chain of extension headers is refused.
type ChainFault uint8

const (
	ChainOK                ChainFault = iota
	ChainTruncated                    // ends inside an extension header; of a first fragment: RFC 7112 §5
	ChainHopByHopNotFirst             // RFC 8200 §4.1
	ChainRoutingType0                 // RFC 5095 §3
	ChainJumbo                        // RFC 2675
	ChainSecondFragment               // a Fragment header behind another
	ChainHopByHopMalformed            // an option reaches out of the Hop-by-Hop header
	numChainFaults
)

var chainFaults = [numChainFaults]string{
	ChainOK:                "ok",
	ChainTruncated:         "truncated",
	ChainHopByHopNotFirst:  "hop-by-hop options not first",
	ChainRoutingType0:      "routing header type 0",
	ChainJumbo:             "jumbo payload",
	ChainSecondFragment:    "second fragment header",
	ChainHopByHopMalformed: "malformed hop-by-hop option",
}

func (f ChainFault) String() string {
	if f < numChainFaults {
		return chainFaults[f]
	}
	return "unknown chain fault"
}

// Walk follows the extension headers (RFC 8200 §4; the IANA registry's, with ESP as a transport) to
// the first header that is none, which may be "no next header" (RFC 8200 §4.7), however many they
// are: at 8 bytes and more each they are bounded by the packet. Behind the Fragment header of a
// non-first fragment it stops: those bytes are data. With a fault the Chain holds what was found
// until then.
func (ip IPv6) Walk() (Chain, ChainFault) {
	c := Chain{Protocol: ip.NextHeader(), Offset: IPv6Size}
	for n := 0; ; n++ {
		size := 0 // of the extension header at c.Offset
		left := ip[c.Offset:]
		switch c.Protocol {
		default:
			return c, ChainOK
		case ProtocolHopByHop:
			if n > 0 {
				return c, ChainHopByHopNotFirst
			}
			if ip.PayloadLength() == 0 {
				return c, ChainJumbo
			}
		case ProtocolRouting, ProtocolDestination, ProtocolAH, ProtocolMobility, ProtocolHIP, ProtocolShim6,
			ProtocolExperiment1, ProtocolExperiment2:
		case ProtocolFragment:
			if c.Fragment != 0 {
				return c, ChainSecondFragment
			}
			size = IPv6FragmentSize
		}
		if len(left) < 8 {
			return c, ChainTruncated
		}
		if c.Protocol == ProtocolAH {
			size = (int(left[1]) + 2) * 4 // RFC 4302 §2.2
		} else if size == 0 {
			size = (int(left[1]) + 1) * 8
		}
		if size > len(left) {
			return c, ChainTruncated
		}
		switch c.Protocol {
		case ProtocolHopByHop:
			if fault := checkHopByHop(left[2:size]); fault != ChainOK {
				return c, fault
			}
		case ProtocolAH:
			c.Pinned = true
		case ProtocolRouting:
			if left[2] == 0 {
				return c, ChainRoutingType0
			}
			c.Pinned = c.Pinned || left[3] != 0
		case ProtocolFragment:
			word := get16(left[2:])
			c.Fragment, c.FragmentOffset, c.MoreFragments, c.ID = c.Offset, int(word&^7), word&1 != 0, get32(left[4:])
		}
		c.Protocol = left[0]
		c.Offset += size
		if c.FragmentOffset != 0 {
			return c, ChainOK
		}
	}
}

// checkHopByHop walks the options of a Hop-by-Hop header.
func checkHopByHop(options []byte) ChainFault {
	const pad1, jumbo = 0x00, 0xc2
	for len(options) > 0 {
		if options[0] == pad1 {
			options = options[1:]
			continue
		}
		if len(options) < 2 || 2+int(options[1]) > len(options) {
			return ChainHopByHopMalformed
		}
		if options[0] == jumbo {
			return ChainJumbo
		}
		options = options[2+int(options[1]):]
	}
	return ChainOK
}
