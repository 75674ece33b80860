// SPDX-License-Identifier: Apache-2.0

// Package header has views over the bytes of packets, their checksums, and what a gateway says
// itself.
//
// A view is a named []byte. ParseX checks every length once and cuts the view to the packet's own
// length; the methods assume that and panic on shorter slices. A view aliases the bytes it was made
// of and lives no longer than they do. Fields are in host order; lengths and offsets are in bytes.
// Getters with netip.Addr are for slow paths, the offset constants for the fast one.
//
// The Append functions build packets behind what dst already holds, so that an Ethernet header with
// or without VLAN tags can stand before them; they allocate only when dst has no room.
package header

import "encoding/binary"

// IP protocol numbers and IPv6 extension headers (IANA).
const (
	ProtocolHopByHop    = 0
	ProtocolICMP        = 1
	ProtocolTCP         = 6
	ProtocolUDP         = 17
	ProtocolDCCP        = 33
	ProtocolRouting     = 43
	ProtocolFragment    = 44
	ProtocolESP         = 50
	ProtocolAH          = 51
	ProtocolICMPv6      = 58
	ProtocolNoNext      = 59
	ProtocolDestination = 60
	ProtocolMobility    = 135
	ProtocolUDPLite     = 136
	ProtocolHIP         = 139
	ProtocolShim6       = 140
	ProtocolExperiment1 = 253
	ProtocolExperiment2 = 254
)

func get16(b []byte) uint16    { return binary.BigEndian.Uint16(b) }
func get32(b []byte) uint32    { return binary.BigEndian.Uint32(b) }
func put16(b []byte, v uint16) { binary.BigEndian.PutUint16(b, v) }
func put32(b []byte, v uint32) { binary.BigEndian.PutUint32(b, v) }

// grow extends dst by n zero bytes and returns it with the new part.
func grow(dst []byte, n int) (all, part []byte) {
	start := len(dst)
	if start+n <= cap(dst) {
		all = dst[:start+n]
		clear(all[start:])
	} else {
		all = append(dst, make([]byte, n)...)
	}
	return all, all[start:]
}
