// SPDX-License-Identifier: Apache-2.0

package header

import "net/netip"

// Offsets in an IPv4 header (RFC 791 §3.1).
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Version|  IHL  |Type of Service|          Total Length         |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|         Identification        |Flags|      Fragment Offset    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Time to Live |    Protocol   |         Header Checksum       |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                       Source Address                          |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                    Destination Address                        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
const (
	IPv4TOSOffset         = 1
	IPv4TotalLengthOffset = 2
	IPv4IDOffset          = 4
	IPv4FragmentOffset    = 6 // flags and fragment offset
	IPv4TTLOffset         = 8
	IPv4ProtocolOffset    = 9
	IPv4ChecksumOffset    = 10
	IPv4SrcOffset         = 12
	IPv4DstOffset         = 16
	IPv4Size              = 20 // without options
)

// Bits of the word at IPv4FragmentOffset.
const (
	IPv4DontFragment       = 0x4000
	IPv4MoreFragments      = 0x2000
	IPv4FragmentOffsetMask = 0x1fff // in units of 8 bytes
)

// IPv4 is a packet, header and payload.
type IPv4 []byte

// ParseIPv4 returns b as an IPv4 packet, or false if any length in it lies. What follows the
// packet, such as Ethernet padding, is cut off. It does not look at the checksum nor into the
// options.
func ParseIPv4(b []byte) (IPv4, bool) {
	if len(b) < IPv4Size || b[0]>>4 != 4 {
		return nil, false
	}
	hlen, total := int(b[0]&0x0f)*4, int(get16(b[IPv4TotalLengthOffset:]))
	if hlen < IPv4Size || total < hlen || total > len(b) {
		return nil, false
	}
	return IPv4(b[:total]), true
}

func (ip IPv4) HeaderLength() int   { return int(ip[0]&0x0f) * 4 }
func (ip IPv4) TOS() uint8          { return ip[IPv4TOSOffset] }
func (ip IPv4) TotalLength() uint16 { return get16(ip[IPv4TotalLengthOffset:]) }
func (ip IPv4) ID() uint16          { return get16(ip[IPv4IDOffset:]) }
func (ip IPv4) DontFragment() bool  { return get16(ip[IPv4FragmentOffset:])&IPv4DontFragment != 0 }
func (ip IPv4) MoreFragments() bool { return get16(ip[IPv4FragmentOffset:])&IPv4MoreFragments != 0 }

// FragmentOffset returns where the payload lies in its datagram.
func (ip IPv4) FragmentOffset() int {
	return int(get16(ip[IPv4FragmentOffset:])&IPv4FragmentOffsetMask) * 8
}

// IsFragment reports whether the packet is not a whole datagram.
func (ip IPv4) IsFragment() bool {
	return get16(ip[IPv4FragmentOffset:])&(IPv4MoreFragments|IPv4FragmentOffsetMask) != 0
}

func (ip IPv4) TTL() uint8       { return ip[IPv4TTLOffset] }
func (ip IPv4) Protocol() uint8  { return ip[IPv4ProtocolOffset] }
func (ip IPv4) Checksum() uint16 { return get16(ip[IPv4ChecksumOffset:]) }
func (ip IPv4) Src() netip.Addr  { return netip.AddrFrom4([4]byte(ip[IPv4SrcOffset:])) }
func (ip IPv4) Dst() netip.Addr  { return netip.AddrFrom4([4]byte(ip[IPv4DstOffset:])) }
func (ip IPv4) Options() []byte  { return ip[IPv4Size:ip.HeaderLength()] }
func (ip IPv4) Payload() []byte  { return ip[ip.HeaderLength():] }

// The setters leave the checksum alone.

func (ip IPv4) SetTOS(v uint8)          { ip[IPv4TOSOffset] = v }
func (ip IPv4) SetTotalLength(v uint16) { put16(ip[IPv4TotalLengthOffset:], v) }
func (ip IPv4) SetID(v uint16)          { put16(ip[IPv4IDOffset:], v) }
func (ip IPv4) SetTTL(v uint8)          { ip[IPv4TTLOffset] = v }
func (ip IPv4) SetProtocol(v uint8)     { ip[IPv4ProtocolOffset] = v }
func (ip IPv4) SetChecksum(v uint16)    { put16(ip[IPv4ChecksumOffset:], v) }

// SetSrc writes an IPv4 address.
func (ip IPv4) SetSrc(a netip.Addr) { *(*[4]byte)(ip[IPv4SrcOffset:]) = a.As4() }

// SetDst writes an IPv4 address.
func (ip IPv4) SetDst(a netip.Addr) { *(*[4]byte)(ip[IPv4DstOffset:]) = a.As4() }

// SetFragment writes the flags and the offset in bytes, a multiple of 8.
func (ip IPv4) SetFragment(flags uint16, offset int) {
	put16(ip[IPv4FragmentOffset:], flags|uint16(offset/8))
}

// ChecksumOK reports whether the header checksum is right.
func (ip IPv4) ChecksumOK() bool { return Checksum(ip[:ip.HeaderLength()], 0) == 0xffff }

// UpdateChecksum computes the header checksum anew.
func (ip IPv4) UpdateChecksum() {
	ip.SetChecksum(0)
	ip.SetChecksum(^Checksum(ip[:ip.HeaderLength()], 0))
}

// DecrementTTL takes one from a TTL that is not 0 and mends the checksum (RFC 1812 §5.3.1).
func (ip IPv4) DecrementTTL() {
	ip[IPv4TTLOffset]--
	ip.SetChecksum(Delta(0).Replace16(0x0100, 0).Apply(ip.Checksum()))
}

// PseudoHeader returns the sum of the pseudo-header for the packet's payload.
func (ip IPv4) PseudoHeader() uint16 {
	return PseudoHeader(ip[IPv4SrcOffset:IPv4DstOffset], ip[IPv4DstOffset:IPv4Size], ip.Protocol(), len(ip)-ip.HeaderLength())
}
