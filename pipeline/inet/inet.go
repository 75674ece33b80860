// SPDX-License-Identifier: Apache-2.0

// Package inet has the addresses of the packet path: two machine words, one form for both families.
package inet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Addr is an IPv6 address, or an IPv4 address in its IPv4-mapped form (RFC 4291 §2.5.5.2), as
// numbers: Hi holds the first eight bytes, Lo the last eight, both big-endian. Equal addresses are
// equal values and the order of (Hi, Lo) is the order of addresses. The zero Addr means "none".
type Addr struct {
	Hi, Lo uint64
}

const mapped = 0xffff << 32

// Family indexes what is kept per family.
type Family uint8

const (
	V4 Family = iota
	V6
)

func (f Family) String() string {
	if f == V4 {
		return "IPv4"
	}
	return "IPv6"
}

// From4 reads four bytes of b in network order.
func From4(b []byte) Addr {
	return Addr{0, mapped | uint64(binary.BigEndian.Uint32(b))}
}

// From16 reads sixteen bytes of b.
func From16(b []byte) Addr {
	_ = b[15]
	return Addr{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

// FromNetip converts a; the zero netip.Addr gives the zero Addr.
func FromNetip(a netip.Addr) Addr {
	if !a.IsValid() {
		return Addr{}
	}
	b := a.As16() // As16 of an IPv4 address is its mapped form
	return From16(b[:])
}

// Netip converts back.
func (a Addr) Netip() netip.Addr {
	if a == (Addr{}) {
		return netip.Addr{}
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], a.Hi)
	binary.BigEndian.PutUint64(b[8:], a.Lo)
	return netip.AddrFrom16(b).Unmap()
}

// Is4 reports whether a is an IPv4 address.
func (a Addr) Is4() bool { return a.Hi == 0 && a.Lo>>32 == 0xffff }

// Family returns V4 or V6.
func (a Addr) Family() Family {
	if a.Is4() {
		return V4
	}
	return V6
}

// Uint32 returns the IPv4 address as a number.
func (a Addr) Uint32() uint32 { return uint32(a.Lo) }

// Put4 writes the IPv4 address to b.
func (a Addr) Put4(b []byte) { binary.BigEndian.PutUint32(b, uint32(a.Lo)) }

// Put16 writes the address to b.
func (a Addr) Put16(b []byte) {
	_ = b[15]
	binary.BigEndian.PutUint64(b, a.Hi)
	binary.BigEndian.PutUint64(b[8:], a.Lo)
}

// Less reports a < b.
func (a Addr) Less(b Addr) bool {
	return a.Hi < b.Hi || a.Hi == b.Hi && a.Lo < b.Lo
}

// Next returns a + 1; the address after the last is the zero Addr.
func (a Addr) Next() Addr {
	lo, carry := bits.Add64(a.Lo, 1, 0)
	return Addr{a.Hi + carry, lo}
}

// Sum returns the one's complement sum of the address's 16-bit words as RFC 1071 §1 adds them, not
// inverted.
func (a Addr) Sum() uint32 {
	if a.Is4() {
		return uint32(a.Lo)>>16 + uint32(a.Lo)&0xffff
	}
	s := a.Hi>>32 + a.Hi&0xffffffff + a.Lo>>32 + a.Lo&0xffffffff
	s = s>>32 + s&0xffffffff
	return uint32(s>>16) + uint32(s&0xffff)
}

// PrefixRange returns the first and last address of p.
func PrefixRange(p netip.Prefix) (first, last Addr) {
	first = FromNetip(p.Masked().Addr())
	host := p.Addr().BitLen() - p.Bits()
	last = first
	if host >= 64 {
		last.Lo = ^uint64(0)
		if host > 64 {
			last.Hi |= ^uint64(0) >> (128 - host)
		}
	} else {
		last.Lo |= 1<<host - 1
	}
	return first, last
}

// Private reports whether a is for private networks (RFC 1918, RFC 4193).
func (a Addr) Private() bool {
	if a.Is4() {
		n := a.Uint32()
		return n>>24 == 10 || n>>20 == 0xac1 || n>>16 == 0xc0a8
	}
	return a.Hi>>57 == 0xfc>>1
}
