// SPDX-License-Identifier: Apache-2.0

package header

// Offsets in a UDP header (RFC 768).
const (
	UDPSrcPortOffset  = 0
	UDPDstPortOffset  = 2
	UDPLengthOffset   = 4
	UDPChecksumOffset = 6
	UDPSize           = 8
)

// UDP is a datagram, header and payload.
type UDP []byte

// ParseUDP returns b as a datagram, cut to its length, or false if that is less than a header or
// more than b. A first fragment is shorter than its length says: read its fields by their offsets.
func ParseUDP(b []byte) (UDP, bool) {
	if len(b) < UDPSize {
		return nil, false
	}
	n := int(get16(b[UDPLengthOffset:]))
	if n < UDPSize || n > len(b) {
		return nil, false
	}
	return UDP(b[:n]), true
}

func (u UDP) SrcPort() uint16  { return get16(u[UDPSrcPortOffset:]) }
func (u UDP) DstPort() uint16  { return get16(u[UDPDstPortOffset:]) }
func (u UDP) Length() uint16   { return get16(u[UDPLengthOffset:]) }
func (u UDP) Checksum() uint16 { return get16(u[UDPChecksumOffset:]) }
func (u UDP) Payload() []byte  { return u[UDPSize:] }

func (u UDP) SetSrcPort(v uint16)  { put16(u[UDPSrcPortOffset:], v) }
func (u UDP) SetDstPort(v uint16)  { put16(u[UDPDstPortOffset:], v) }
func (u UDP) SetLength(v uint16)   { put16(u[UDPLengthOffset:], v) }
func (u UDP) SetChecksum(v uint16) { put16(u[UDPChecksumOffset:], v) }
