// SPDX-License-Identifier: Apache-2.0

// Package rendezvous is the published hash by which flows are shared out over several floating
// addresses: every host and every restart chooses alike. docs/rendezvous.md has the definition and
// test vectors.
package rendezvous

import (
	"encoding/binary"
	"math/bits"

	"weir/config"
	"weir/pipeline/inet"
)

// SipHash24 is SipHash-2-4 (Aumasson and Bernstein, 2012) of m under the key k0, k1, both
// little-endian.
func SipHash24(k0, k1 uint64, m []byte) uint64 {
	v0, v1 := k0^0x736f6d6570736575, k1^0x646f72616e646f6d
	v2, v3 := k0^0x6c7967656e657261, k1^0x7465646279746573
	round := func() {
		v0 += v1
		v2 += v3
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v1
		v0 += v3
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 = bits.RotateLeft64(v2, 32)
	}
	last := uint64(len(m)) << 56
	for ; len(m) >= 8; m = m[8:] {
		w := binary.LittleEndian.Uint64(m)
		v3 ^= w
		round()
		round()
		v0 ^= w
	}
	for i, c := range m {
		last |= uint64(c) << (8 * i)
	}
	v3 ^= last
	round()
	round()
	v0 ^= last
	v2 ^= 0xff
	round()
	round()
	round()
	round()
	return v0 ^ v1 ^ v2 ^ v3
}

// The key of the rendezvous hash is fixed and published: every host and every restart must choose
// alike. It is the ASCII text "weir rendezvous." read as two little-endian words.
const (
	Key0 = 0x6e65722072696577
	Key1 = 0x2e73756f767a6564
)

// Flow is what of a flow takes part in the choice among several external addresses.
type Flow struct {
	Proto                   uint8
	Private, Remote         inet.Addr
	PrivatePort, RemotePort uint16
}

// Weight returns the weight of a candidate for the flow: the candidate with the highest weight is
// chosen, so adding or removing one moves only the flows that it gains or had (Thaler and
// Ravishankar, 1998). The hashed text is 53 bytes: protocol; private address, 16 bytes, IPv4 in its
// mapped form; private port or identifier; remote address; remote port; candidate; numbers
// big-endian. What spread leaves out is 0.
func Weight(f *Flow, spread config.Spread, candidate inet.Addr) uint64 {
	var m [53]byte
	f.Private.Put16(m[1:])
	if spread != config.SpreadInstance {
		m[0] = f.Proto
		binary.BigEndian.PutUint16(m[17:], f.PrivatePort)
	}
	if spread == config.SpreadFlow {
		f.Remote.Put16(m[19:])
		binary.BigEndian.PutUint16(m[35:], f.RemotePort)
	}
	candidate.Put16(m[37:])
	return SipHash24(Key0, Key1, m[:])
}
