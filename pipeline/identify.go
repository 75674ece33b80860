// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"

	"weir/pipeline/header"
	"weir/pipeline/inet"
)

// The identifications of packets through SNAT are drawn from so many counters.
const (
	idBits     = 16
	idCounters = 1 << idBits
)

// identifications are a worker's.
type identifications struct {
	keys [4]uint64
	next [idCounters]uint16
}

func (v *identifications) init(r *rand.ChaCha8) {
	for i := range v.keys {
		v.keys[i] = r.Uint64()
	}
	for i := range v.next {
		v.next[i] = uint16(r.Uint64())
	}
}

// identify gives an IPv4 packet that leaves through SNAT, and that is or may come to be in pieces,
// an identification that no other of its external address, remote address and protocol has had for
// as long as 16 bits allow: two instances that share an address may have chosen the same, and the
// receiver would mix their datagrams (RFC 4963, RFC 6864 §5.3.1).
func (w *Worker) identify(p *Packet, ip []byte) {
	var id uint16
	if d := p.datagram; !p.fragmented || d == nil {
		id = w.ids.nextID(p.newAddr, p.remote, p.proto)
	} else {
		if !d.named {
			d.id, d.named = w.ids.nextID(p.newAddr, p.remote, p.proto), true
		}
		id = d.id
	}
	p.headerDelta = p.headerDelta.Replace16(binary.BigEndian.Uint16(ip[4:]), id)
	binary.BigEndian.PutUint16(ip[4:], id)
}

// nextID returns the next identification from external to remote: the next value of a counter, as a
// permutation of that triple's own shows it. Triples share counters, and only use them up faster:
// what one of them sees does not tell how many the others have drawn (RFC 7739 §4.3 has the
// attacks).
func (v *identifications) nextID(external, remote inet.Addr, proto uint8) uint16 {
	x := v.hash(external, remote, proto)
	n := &v.next[x>>(64-idBits)]
	*n++
	id := *n ^ uint16(x)
	id *= uint16(x>>16) | 1
	id ^= id >> 7
	id *= uint16(x>>32) | 1
	return id ^ id>>9
}

// hash is keyed, and no sum: triples that share a counter share none any more when all of them are
// moved alike, so nobody finds out by own addresses who shares one with another.
func (v *identifications) hash(external, remote inet.Addr, proto uint8) uint64 {
	ends := external.Lo<<32 | remote.Lo&0xffffffff
	h, l := bits.Mul64(ends^v.keys[0], bits.RotateLeft64(ends, 32)^v.keys[1])
	h, l = bits.Mul64(h^v.keys[2], l^v.keys[3]^uint64(proto))
	return h ^ l
}

// atomic4 reports whether an IPv4 packet is whole and stays so (RFC 6864 §4): its identification
// means nothing.
func atomic4(ip []byte) bool {
	return binary.BigEndian.Uint16(ip[6:])&0x7fff == header.IPv4DontFragment
}
