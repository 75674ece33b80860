// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"
	"math/bits"

	"weir/config"
	"weir/pipeline/inet"
)

// sipHash24 is SipHash-2-4 (Aumasson and Bernstein, 2012) of m under the key k0, k1, both little-endian.
func sipHash24(k0, k1 uint64, m []byte) uint64 {
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

// The key of the rendezvous hash is fixed and published: every host and every restart must choose alike. It is
// the ASCII text "weir rendezvous." read as two little-endian words.
const (
	rendezvousKey0 = 0x6e65722072696577
	rendezvousKey1 = 0x2e73756f767a6564
)

// flowKey is what of a flow takes part in the choice among several external addresses.
type flowKey struct {
	proto                   uint8
	private, remote         inet.Addr
	privatePort, remotePort uint16
}

// rendezvous returns the weight of a candidate for the flow: the candidate with the highest weight is chosen, so
// adding or removing one moves only the flows that it gains or had (Thaler and Ravishankar, 1998). The hashed
// text is 53 bytes: protocol; private address, 16 bytes, IPv4 in its mapped form; private port or identifier; remote
// address; remote port; candidate; numbers big-endian. What spread leaves out is 0.
func rendezvous(f *flowKey, spread config.Spread, candidate inet.Addr) uint64 {
	var m [53]byte
	f.private.Put16(m[1:])
	if spread != config.SpreadInstance {
		m[0] = f.proto
		binary.BigEndian.PutUint16(m[17:], f.privatePort)
	}
	if spread == config.SpreadFlow {
		f.remote.Put16(m[19:])
		binary.BigEndian.PutUint16(m[35:], f.remotePort)
	}
	candidate.Put16(m[37:])
	return sipHash24(rendezvousKey0, rendezvousKey1, m[:])
}
