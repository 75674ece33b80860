// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/header"
	"weir/pipeline/inet"
)

// ttlDelta is what one less TTL does to the IPv4 header checksum: ~m + m' where m' is m - 0x0100.
const ttlDelta header.Delta = 0xfeff

// rewrite translates the packets in place: address, port or identifier, checksums, TTL. Its twins
// on the short way are rewrite4 and rewrite6.
func (w *Worker) rewrite(b *Burst) {
	for _, i := range b.live {
		p := &b.Packets[i]
		ip := p.Data[header.EthernetSize:]
		if p.act == actOut || p.act == actIn {
			p.translate(ip)
			// What turns back is clamped when it comes again, with a port to leave through.
			if p.tcpFlags&tcpSYN != 0 && !p.hairpin {
				w.clampMSS(b.Port, p)
			}
		}
		hop, hopDelta := uint8(1), ttlDelta
		if p.turned { // weir is one hop, and has counted
			hop, hopDelta = 0, 0
		}
		if p.family == inet.V4 {
			if p.shared && !atomic4(ip) {
				w.identify(p, ip)
			}
			if ip[0] != 0x45 && (p.act == actOut || p.act == actOutPlain) {
				p.headerDelta = p.headerDelta.Add(conceal(ip))
			}
			sum := p.headerDelta.Add(hopDelta).Apply(binary.BigEndian.Uint16(ip[10:]))
			binary.BigEndian.PutUint16(ip[10:], sum)
			ip[8] -= hop
		} else {
			ip[7] -= hop
		}
	}
}

// translate replaces the local address, and the port where it changes. Its twins on the short way
// are rewrite4 and rewrite6.
func (p *Packet) translate(ip []byte) {
	src := p.act == actOut
	switch {
	case p.family == inet.V4 && src:
		p.newAddr.Put4(ip[12:])
	case p.family == inet.V4:
		p.newAddr.Put4(ip[16:])
	case src:
		p.newAddr.Put16(ip[8:])
	default:
		p.newAddr.Put16(ip[24:])
	}
	t := p.Data[p.transport:]
	switch p.kind {
	case kindPiece:
	case kindTCP:
		putPort(t, p.newPort, src)
		binary.BigEndian.PutUint16(t[16:18], p.delta.Apply(binary.BigEndian.Uint16(t[16:])))
	case kindUDP:
		putPort(t, p.newPort, src)
		binary.BigEndian.PutUint16(t[6:8], p.delta.ApplyUDP(binary.BigEndian.Uint16(t[6:])))
	case kindEchoRequest, kindEchoReply:
		binary.BigEndian.PutUint16(t[4:], p.newPort)
		sum := binary.BigEndian.Uint16(t[2:])
		if p.family == inet.V4 {
			sum = p.delta.ApplyICMP(sum)
		} else {
			sum = p.delta.Apply(sum)
		}
		binary.BigEndian.PutUint16(t[2:4], sum)
	case kindError:
		p.translateError(t, src)
	default:
		// Other protocols keep their ports; these two have a pseudo-header (RFC 3828 §3.1, RFC 4340
		// §9.1).
		switch p.proto {
		case header.ProtocolUDPLite:
			binary.BigEndian.PutUint16(t[6:8], p.delta.ApplyUDP(binary.BigEndian.Uint16(t[6:])))
		case header.ProtocolDCCP: // 0 is a sum like any other
			binary.BigEndian.PutUint16(t[6:8], p.delta.Apply(binary.BigEndian.Uint16(t[6:])))
		}
	}
}

func putPort(t []byte, port uint16, src bool) {
	if src {
		binary.BigEndian.PutUint16(t, port)
	} else {
		binary.BigEndian.PutUint16(t[2:], port)
	}
}

// setDeltas notes what replacing the local address and port does to checksums.
func (p *Packet) setDeltas(old, new inet.Addr, oldPort, newPort uint16) {
	p.headerDelta, p.delta = header.AddressDeltas(p.proto, old.Sum(), new.Sum(), oldPort, newPort)
}
