// SPDX-License-Identifier: Apache-2.0

package header

import (
	"encoding/binary"
	"math/bits"
)

// Checksum returns the one's complement sum (RFC 1071) of initial and the 16-bit big-endian words
// of b; an odd last byte is the high half of a word. The sum is not inverted: a checksum field
// holds ^Checksum(...) computed with that field zero, and over data that includes a right checksum
// the sum is 0xffff.
func Checksum(b []byte, initial uint16) uint16 {
	// The sum does not depend on byte order (RFC 1071 §2(B)): add in the cheap one, swap once at
	// the end.
	sum, carry := uint64(bits.ReverseBytes16(initial)), uint64(0)
	for len(b) >= 32 {
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[8:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[16:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[24:]), carry)
		b = b[32:]
	}
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) >= 4 {
		sum, carry = bits.Add64(sum, uint64(binary.LittleEndian.Uint32(b)), carry)
		b = b[4:]
	}
	if len(b) >= 2 {
		sum, carry = bits.Add64(sum, uint64(binary.LittleEndian.Uint16(b)), carry)
		b = b[2:]
	}
	if len(b) == 1 {
		sum, carry = bits.Add64(sum, uint64(b[0]), carry)
	}
	return bits.ReverseBytes16(fold(sum + carry)) // a sum of all ones has no carry: it began with 16 bits
}

// fold adds the four 16-bit words of sum with end-around carry.
func fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum)
}

// Combine adds two sums; the second one's bytes must begin at an even offset of the whole.
func Combine(a, b uint16) uint16 {
	sum := uint32(a) + uint32(b)
	return uint16(sum>>16 + sum)
}

// PseudoHeader returns the sum of the pseudo-header (RFC 768, RFC 9293 §3.1, RFC 8200 §8.1): src
// and dst hold 4 or 16 bytes each in network order, length is that of the transport header and its
// payload.
func PseudoHeader(src, dst []byte, protocol uint8, length int) uint16 {
	sum := Checksum(dst, Checksum(src, 0))
	return fold(uint64(sum) + uint64(protocol) + uint64(length))
}

// Delta is what a rewrite does to a checksum: the folded one's complement sum of ~m + m' for every
// 16-bit word m replaced by m' (RFC 1624 eqn. 3). The zero Delta changes nothing. Deltas of the
// same rewrite may be kept and applied to packet after packet; a checksum that was wrong stays
// wrong by the same difference.
type Delta uint16

// Replace16 adds the replacement of a word at an even offset.
func (d Delta) Replace16(old, new uint16) Delta {
	sum := uint32(d) + uint32(^old) + uint32(new)
	sum = sum>>16 + sum&0xffff
	return Delta(sum>>16 + sum)
}

// ReplaceOdd16 adds the replacement of a 16-bit field at an odd offset: its halves lie in two
// words, which for the sum is the same as one word with swapped bytes.
func (d Delta) ReplaceOdd16(old, new uint16) Delta {
	return d.Replace16(bits.ReverseBytes16(old), bits.ReverseBytes16(new))
}

// Replace32 adds the replacement of a 32-bit field, such as an IPv4 address. Unfolded sums of
// longer fields may take the place of old and new.
func (d Delta) Replace32(old, new uint32) Delta {
	sum := uint64(d) + uint64(^old) + uint64(new)
	sum = sum>>32 + sum&0xffffffff // at most 1<<32
	sum = sum>>16 + sum&0xffff
	return Delta(sum>>16 + sum)
}

// Replace128 adds the replacement of a 128-bit field, such as an IPv6 address.
func (d Delta) Replace128(old, new *[16]byte) Delta {
	return d.Add(Delta(Combine(^Checksum(old[:], 0), Checksum(new[:], 0))))
}

// Add returns the Delta of both rewrites together.
func (d Delta) Add(e Delta) Delta { return Delta(Combine(uint16(d), uint16(e))) }

// AddressDeltas returns what replacing an address, given by the sum of its words, and a port does
// to the IPv4 header's checksum and to the transport's. ICMPv4's sum covers no addresses.
func AddressDeltas(proto uint8, old, new uint32, oldPort, newPort uint16) (ip, transport Delta) {
	ip = Delta(0).Replace32(old, new)
	transport = Delta(0).Replace16(oldPort, newPort)
	if proto != ProtocolICMP {
		transport = transport.Add(ip)
	}
	return ip, transport
}

// Invert returns the Delta of the rewrite undone.
func (d Delta) Invert() Delta { return ^d }

// Apply returns the checksum field after the rewrite: ~(~HC + ~m + m'). It is for what never sums
// to zero: an IPv4 header (version), TCP and ICMPv6 (protocol in the pseudo-header). There a
// computed field is never 0xffff, the mistake of RFC 1141 that RFC 1624 §3 mends.
func (d Delta) Apply(sum uint16) uint16 { return ^Combine(^sum, uint16(d)) }

// Mend is Apply for several Deltas at once: sum is of them and of ~m + m' of further words, not
// folded.
func Mend(checksum uint16, sum uint32) uint16 {
	sum += uint32(^checksum)
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum>>16 + sum)
}

// ApplyUDP is Apply for UDP (RFC 768): 0 means that the sender computed none and stays, a computed
// 0 is written as 0xffff.
func (d Delta) ApplyUDP(sum uint16) uint16 {
	if sum == 0 {
		return 0
	}
	return d.ApplyICMP(sum)
}

// ApplyICMP is Apply for ICMPv4, where no pseudo-header keeps a message from being all zeros, as an
// echo reply may be. Then the field has to be 0xffff, while a message that sums to 0xffff takes 0
// or 0xffff. Eqn. 3 cannot tell the two apart, so a computed 0 is written as 0xffff: whoever sums
// the message accepts that.
func (d Delta) ApplyICMP(sum uint16) uint16 {
	if sum = d.Apply(sum); sum == 0 {
		return 0xffff
	}
	return sum
}
