// SPDX-License-Identifier: Apache-2.0

package header

// Offsets in a TCP header (RFC 9293 §3.1).
const (
	TCPSrcPortOffset    = 0
	TCPDstPortOffset    = 2
	TCPSeqOffset        = 4
	TCPAckOffset        = 8
	TCPDataOffsetOffset = 12
	TCPFlagsOffset      = 13
	TCPWindowOffset     = 14
	TCPChecksumOffset   = 16
	TCPUrgentOffset     = 18
	TCPSize             = 20 // without options
)

// TCP flags.
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// TCP is a segment, header and payload.
type TCP []byte

// ParseTCP returns b as a segment, or false if it is shorter than its header. It does not look into
// the options.
func ParseTCP(b []byte) (TCP, bool) {
	if len(b) < TCPSize {
		return nil, false
	}
	if hlen := int(b[TCPDataOffsetOffset]>>4) * 4; hlen < TCPSize || hlen > len(b) {
		return nil, false
	}
	return TCP(b), true
}

func (t TCP) SrcPort() uint16   { return get16(t[TCPSrcPortOffset:]) }
func (t TCP) DstPort() uint16   { return get16(t[TCPDstPortOffset:]) }
func (t TCP) Seq() uint32       { return get32(t[TCPSeqOffset:]) }
func (t TCP) Ack() uint32       { return get32(t[TCPAckOffset:]) }
func (t TCP) HeaderLength() int { return int(t[TCPDataOffsetOffset]>>4) * 4 }
func (t TCP) Flags() uint8      { return t[TCPFlagsOffset] }
func (t TCP) Window() uint16    { return get16(t[TCPWindowOffset:]) }
func (t TCP) Checksum() uint16  { return get16(t[TCPChecksumOffset:]) }
func (t TCP) Urgent() uint16    { return get16(t[TCPUrgentOffset:]) }
func (t TCP) Options() []byte   { return t[TCPSize:t.HeaderLength()] }
func (t TCP) Payload() []byte   { return t[t.HeaderLength():] }

func (t TCP) SetSrcPort(v uint16)  { put16(t[TCPSrcPortOffset:], v) }
func (t TCP) SetDstPort(v uint16)  { put16(t[TCPDstPortOffset:], v) }
func (t TCP) SetSeq(v uint32)      { put32(t[TCPSeqOffset:], v) }
func (t TCP) SetAck(v uint32)      { put32(t[TCPAckOffset:], v) }
func (t TCP) SetFlags(v uint8)     { t[TCPFlagsOffset] = v }
func (t TCP) SetWindow(v uint16)   { put16(t[TCPWindowOffset:], v) }
func (t TCP) SetChecksum(v uint16) { put16(t[TCPChecksumOffset:], v) }
func (t TCP) SetUrgent(v uint16)   { put16(t[TCPUrgentOffset:], v) }

// ClampMSS lowers every maximum segment size option above limit to it and mends the checksum; it
// never raises nor adds one. It reports whether it changed the segment. Options behind a malformed
// one are not read.
func (t TCP) ClampMSS(limit uint16) bool {
	const end, nop, mss = 0, 1, 2
	d, changed := Delta(0), false
	for i, hlen := TCPSize, t.HeaderLength(); i < hlen; {
		if t[i] == end {
			break
		}
		if t[i] == nop {
			i++
			continue
		}
		if i+2 > hlen || t[i+1] < 2 || i+int(t[i+1]) > hlen {
			break
		}
		if t[i] == mss && t[i+1] == 4 && get16(t[i+2:]) > limit {
			if i%2 == 0 {
				d = d.Replace16(get16(t[i+2:]), limit)
			} else {
				d = d.ReplaceOdd16(get16(t[i+2:]), limit)
			}
			put16(t[i+2:], limit)
			changed = true
		}
		i += int(t[i+1])
	}
	if changed {
		t.SetChecksum(d.Apply(t.Checksum()))
	}
	return changed
}
