// SPDX-License-Identifier: Apache-2.0

package header

import "fmt"

// Offsets in an Ethernet header.
const (
	EthernetDstOffset  = 0
	EthernetSrcOffset  = 6
	EthernetTypeOffset = 12
	EthernetSize       = 14
)

// Ethernet types.
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeVLAN = 0x8100 // IEEE 802.1Q
	EtherTypeIPv6 = 0x86dd
	EtherTypeQinQ = 0x88a8 // IEEE 802.1ad
)

// MAC is an Ethernet address.
type MAC [6]byte

// Broadcast is the Ethernet broadcast address.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// IsGroup reports whether m is a multicast or the broadcast address.
func (m MAC) IsGroup() bool { return m[0]&1 != 0 }

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Ethernet is a frame; VLAN tags, where there are any, begin its payload.
type Ethernet []byte

// ParseEthernet returns b as a frame, or false if it is shorter than a header.
func ParseEthernet(b []byte) (Ethernet, bool) {
	if len(b) < EthernetSize {
		return nil, false
	}
	return Ethernet(b), true
}

func (e Ethernet) Dst() MAC         { return MAC(e[EthernetDstOffset:]) }
func (e Ethernet) Src() MAC         { return MAC(e[EthernetSrcOffset:]) }
func (e Ethernet) Type() uint16     { return get16(e[EthernetTypeOffset:]) }
func (e Ethernet) Payload() []byte  { return e[EthernetSize:] }
func (e Ethernet) SetDst(m MAC)     { *(*MAC)(e[EthernetDstOffset:]) = m }
func (e Ethernet) SetSrc(m MAC)     { *(*MAC)(e[EthernetSrcOffset:]) = m }
func (e Ethernet) SetType(t uint16) { put16(e[EthernetTypeOffset:], t) }

// AppendEthernet appends a header.
func AppendEthernet(b []byte, dst, src MAC, etherType uint16) []byte {
	b, h := grow(b, EthernetSize)
	e := Ethernet(h)
	e.SetDst(dst)
	e.SetSrc(src)
	e.SetType(etherType)
	return b
}
