// SPDX-License-Identifier: Apache-2.0

package header

// Offsets in an ICMP and ICMPv6 message (RFC 792, RFC 4443 §2.1).
const (
	ICMPTypeOffset     = 0
	ICMPCodeOffset     = 1
	ICMPChecksumOffset = 2
	ICMPIDOffset       = 4 // echo and timestamp
	ICMPSequenceOffset = 6 // echo and timestamp
	ICMPSize           = 8 // what an error quotes, an echo's data and an NDP target begin here
)

// ICMP types (IANA).
const (
	ICMPv4EchoReply       = 0
	ICMPv4Unreachable     = 3
	ICMPv4SourceQuench    = 4
	ICMPv4Redirect        = 5
	ICMPv4EchoRequest     = 8
	ICMPv4RouterAdvert    = 9
	ICMPv4RouterSolicit   = 10
	ICMPv4TimeExceeded    = 11
	ICMPv4ParamProblem    = 12
	ICMPv4Timestamp       = 13
	ICMPv4TimestampReply  = 14
	ICMPv4InfoRequest     = 15
	ICMPv4InfoReply       = 16
	ICMPv4MaskRequest     = 17
	ICMPv4MaskReply       = 18
	ICMPv6Unreachable     = 1
	ICMPv6PacketTooBig    = 2
	ICMPv6TimeExceeded    = 3
	ICMPv6ParamProblem    = 4
	ICMPv6EchoRequest     = 128
	ICMPv6EchoReply       = 129
	ICMPv6NeighborSolicit = 135
	ICMPv6NeighborAdvert  = 136
	ICMPv6Redirect        = 137
)

// ICMPv4 is a message.
type ICMPv4 []byte

// ParseICMPv4 returns b as a message, or false if it is shorter than 8 bytes. It does not look at
// the checksum.
func ParseICMPv4(b []byte) (ICMPv4, bool) {
	if len(b) < ICMPSize {
		return nil, false
	}
	return ICMPv4(b), true
}

func (m ICMPv4) Type() uint8      { return m[ICMPTypeOffset] }
func (m ICMPv4) Code() uint8      { return m[ICMPCodeOffset] }
func (m ICMPv4) Checksum() uint16 { return get16(m[ICMPChecksumOffset:]) }
func (m ICMPv4) ID() uint16       { return get16(m[ICMPIDOffset:]) }
func (m ICMPv4) Sequence() uint16 { return get16(m[ICMPSequenceOffset:]) }
func (m ICMPv4) MTU() uint16      { return get16(m[6:]) } // of 3/4 (RFC 1191 §4)
func (m ICMPv4) Payload() []byte  { return m[ICMPSize:] }

func (m ICMPv4) SetChecksum(v uint16) { put16(m[ICMPChecksumOffset:], v) }
func (m ICMPv4) SetID(v uint16)       { put16(m[ICMPIDOffset:], v) }

// IsError reports whether the message is about another packet, which it quotes (RFC 1122 §3.2.2).
func (m ICMPv4) IsError() bool {
	switch m.Type() {
	case ICMPv4Unreachable, ICMPv4SourceQuench, ICMPv4Redirect, ICMPv4TimeExceeded, ICMPv4ParamProblem:
		return true
	}
	return false
}

// Quoted returns the packet that an error quotes, without what RFC 4884 §5 puts behind it. A length
// attribute that reaches out of the message is ignored.
func (m ICMPv4) Quoted() []byte {
	switch m.Type() {
	case ICMPv4Unreachable, ICMPv4TimeExceeded, ICMPv4ParamProblem:
		return quoted(m, int(m[5])*4)
	}
	return m.Payload()
}

// ChecksumOK reports whether the checksum is right.
func (m ICMPv4) ChecksumOK() bool { return Checksum(m, 0) == 0xffff }

// ICMPv6 is a message.
type ICMPv6 []byte

// ParseICMPv6 returns b as a message, or false if it is shorter than 8 bytes. It does not look at
// the checksum.
func ParseICMPv6(b []byte) (ICMPv6, bool) {
	if len(b) < ICMPSize {
		return nil, false
	}
	return ICMPv6(b), true
}

func (m ICMPv6) Type() uint8      { return m[ICMPTypeOffset] }
func (m ICMPv6) Code() uint8      { return m[ICMPCodeOffset] }
func (m ICMPv6) ID() uint16       { return get16(m[ICMPIDOffset:]) }
func (m ICMPv6) Sequence() uint16 { return get16(m[ICMPSequenceOffset:]) }
func (m ICMPv6) MTU() uint32      { return get32(m[4:]) } // of 2/0
func (m ICMPv6) Payload() []byte  { return m[ICMPSize:] }

func (m ICMPv6) SetChecksum(v uint16) { put16(m[ICMPChecksumOffset:], v) }
func (m ICMPv6) SetID(v uint16)       { put16(m[ICMPIDOffset:], v) }

// IsError reports whether the message is an error (RFC 4443 §2.1): its type's high bit is 0.
func (m ICMPv6) IsError() bool { return m.Type() < 128 }

// Quoted returns the packet that an error quotes, without what RFC 4884 §5 puts behind it. A length
// attribute that reaches out of the message is ignored.
func (m ICMPv6) Quoted() []byte {
	switch m.Type() {
	case ICMPv6Unreachable, ICMPv6TimeExceeded:
		return quoted(m, int(m[4])*8)
	}
	return m.Payload()
}

// ChecksumOK reports whether the checksum is right, with the sum of the pseudo-header.
func (m ICMPv6) ChecksumOK(pseudoHeader uint16) bool { return Checksum(m, pseudoHeader) == 0xffff }

func quoted(m []byte, length int) []byte {
	if length == 0 || ICMPSize+length > len(m) {
		return m[ICMPSize:]
	}
	return m[ICMPSize : ICMPSize+length]
}
