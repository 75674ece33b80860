// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/header"
)

// IPv4 options in which routers leave their addresses (RFC 791 §3.1): no translation finds them
// there, and what has been recorded before weir are addresses of a VPC.
const (
	optionEnd         = 0
	optionNOP         = 1
	optionRecordRoute = 7
	optionTimestamp   = 68
)

// conceal puts zeros in the place of all addresses that an IPv4 packet which leaves, or the packet
// that an ICMP error quotes, has in record route and timestamp options, and returns what that does
// to the header's checksum. The pointers stay: routers outside go on behind the zeros. Timestamps
// that come without addresses stay too. What comes in is left as it is: it has no address from
// inside but in answer to what left without.
func conceal(ip []byte) header.Delta {
	options := ip[header.IPv4Size : int(ip[0]&0x0f)*4]
	old := header.Checksum(options, 0)
	for o := options; len(o) > 0 && o[0] != optionEnd; {
		if o[0] == optionNOP {
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) { // of a quote, which nobody has checked: who knows what it is
			clear(o)
			break
		}
		option := o[:o[1]]
		o = o[o[1]:]
		switch option[0] {
		case optionRecordRoute:
			clear(option[min(3, len(option)):])
		case optionTimestamp:
			if len(option) < 4 || option[3]&0x0f != 0 { // a flag: addresses stand before the timestamps
				clear(option[min(4, len(option)):])
			}
		}
	}
	return header.Delta(0).Replace16(old, header.Checksum(options, 0))
}

// concealQuote is conceal for the packet that an ICMP error quotes. It mends the quoted header, and
// returns what all of it does to a checksum over the quote.
func (p *Packet) concealQuote() header.Delta {
	b := p.Data[p.quote.ip:p.quote.end]
	d := conceal(b)
	field := b[header.IPv4ChecksumOffset:]
	return replace16(d, field, d.Apply(binary.BigEndian.Uint16(field)))
}
