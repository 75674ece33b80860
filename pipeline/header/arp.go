// SPDX-License-Identifier: Apache-2.0

package header

import "net/netip"

// Offsets in an ARP packet for Ethernet and IPv4 (RFC 826).
const (
	ARPOperationOffset = 6
	ARPSenderMACOffset = 8
	ARPSenderOffset    = 14
	ARPTargetMACOffset = 18
	ARPTargetOffset    = 24
	ARPSize            = 28
)

// ARP operations.
const (
	ARPRequest = 1
	ARPReply   = 2
)

// ARP is a request or reply for Ethernet and IPv4.
type ARP []byte

// arpFormat is hardware type Ethernet, protocol type IPv4, and their address lengths.
const arpFormat = "\x00\x01\x08\x00\x06\x04"

// ParseARP returns b as an ARP request or reply, or false if it is cut short or of another kind.
func ParseARP(b []byte) (ARP, bool) {
	if len(b) < ARPSize || string(b[:ARPOperationOffset]) != arpFormat {
		return nil, false
	}
	if op := get16(b[ARPOperationOffset:]); op != ARPRequest && op != ARPReply {
		return nil, false
	}
	return ARP(b[:ARPSize]), true
}

func (a ARP) Operation() uint16  { return get16(a[ARPOperationOffset:]) }
func (a ARP) SenderMAC() MAC     { return MAC(a[ARPSenderMACOffset:]) }
func (a ARP) Sender() netip.Addr { return netip.AddrFrom4([4]byte(a[ARPSenderOffset:])) }
func (a ARP) TargetMAC() MAC     { return MAC(a[ARPTargetMACOffset:]) }
func (a ARP) Target() netip.Addr { return netip.AddrFrom4([4]byte(a[ARPTargetOffset:])) }

// AppendARPRequest appends the question who has target, asked by sender at mac. A sender of 0.0.0.0
// makes it a probe, a sender equal to the target an announcement (RFC 5227). Both addresses are
// IPv4.
func AppendARPRequest(b []byte, mac MAC, sender, target netip.Addr) []byte {
	return appendARP(b, ARPRequest, mac, sender, MAC{}, target)
}

// AppendARPReply appends the answer to request: its target is at mac.
func AppendARPReply(b []byte, mac MAC, request ARP) []byte {
	return appendARP(b, ARPReply, mac, request.Target(), request.SenderMAC(), request.Sender())
}

func appendARP(b []byte, op uint16, senderMAC MAC, sender netip.Addr, targetMAC MAC, target netip.Addr) []byte {
	b, a := grow(b, ARPSize)
	copy(a, arpFormat)
	put16(a[ARPOperationOffset:], op)
	*(*MAC)(a[ARPSenderMACOffset:]) = senderMAC
	*(*[4]byte)(a[ARPSenderOffset:]) = sender.As4()
	*(*MAC)(a[ARPTargetMACOffset:]) = targetMAC
	*(*[4]byte)(a[ARPTargetOffset:]) = target.As4()
	return b
}
