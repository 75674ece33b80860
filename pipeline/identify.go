// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/header"
	"weir/pipeline/inet"
)

// The identifications of packets through SNAT are drawn from so many counters.
const (
	idBits     = 12
	idCounters = 1 << idBits
)

// identify gives an IPv4 packet that leaves through SNAT, and that is or may come to be in pieces,
// an identification that no other of its external address, remote address and protocol has had for
// as long as 16 bits allow: two instances that share an address may have chosen the same, and the
// receiver would mix their datagrams (RFC 4963, RFC 6864 §5.3.1).
func (w *Worker) identify(p *Packet, ip []byte) {
	var id uint16
	if d := p.datagram; !p.fragmented || d == nil {
		id = w.pieces.nextID(p.newAddr, p.remote, p.proto)
	} else {
		if !d.named {
			d.id, d.named = w.pieces.nextID(p.newAddr, p.remote, p.proto), true
		}
		id = d.id
	}
	p.headerDelta = p.headerDelta.Replace16(binary.BigEndian.Uint16(ip[4:]), id)
	binary.BigEndian.PutUint16(ip[4:], id)
}

// nextID returns the next identification from external to remote. Flows that share a counter only
// use it up faster, so a multiplication is hash enough; the key keeps attackers from choosing who
// shares.
func (v *virtualReassembly) nextID(external, remote inet.Addr, proto uint8) uint16 {
	triple := external.Lo<<32 | remote.Lo&0xffffffff ^ uint64(proto)<<24
	n := &v.ids[triple*v.multiplier>>(64-idBits)]
	*n++
	return *n
}

// atomic4 reports whether an IPv4 packet is whole and stays so (RFC 6864 §4): its identification
// means nothing.
func atomic4(ip []byte) bool {
	return binary.BigEndian.Uint16(ip[6:])&0x7fff == header.IPv4DontFragment
}
