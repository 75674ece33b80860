// SPDX-License-Identifier: Apache-2.0

package packettext

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
)

// Verify returns what is wrong with the lengths and checksums of a frame, nil if nothing is. It
// reads Ethernet with VLAN tags, ARP, IPv4 and IPv6 with options and extension headers, TCP, UDP,
// UDP-Lite, DCCP, ICMP, ICMPv6 with neighbor discovery, and the packets that ICMP errors quote,
// which may be cut short at their end, with what RFC 4884 appends to them. What cannot be known is
// not checked: transports that are fragments, encrypted or of another protocol. It shares no code
// with what it judges, and is written to be read beside the RFCs.
func Verify(frame []byte) error {
	if len(frame) < 14 {
		return fmt.Errorf("ethernet: %d bytes, want 14 or more", len(frame))
	}
	at, shortest := 12, 60
	for at16(frame[at:]) == typeVLAN || at16(frame[at:]) == typeQinQ {
		if len(frame) < at+6 {
			return fmt.Errorf("vlan: ends inside a tag")
		}
		at += 4
		shortest += 4
	}
	kind, b := at16(frame[at:]), frame[at+2:]
	var used int
	var err error
	switch kind {
	case typeARP:
		used, err = 28, verifyARP(b)
	case typeIPv4:
		used, err = verifyIPv4(b, false)
	case typeIPv6:
		used, err = verifyIPv6(b, false)
	default:
		return fmt.Errorf("ethernet: type 0x%04x, want ARP, IPv4 or IPv6", kind)
	}
	if err != nil {
		return err
	}
	if used < len(b) && len(frame) > shortest {
		return fmt.Errorf("ethernet: %d bytes behind the packet of a frame of %d; padding goes to %d only",
			len(b)-used, len(frame), shortest)
	}
	if i := slices.IndexFunc(b[used:], func(c byte) bool { return c != 0 }); i >= 0 {
		return fmt.Errorf("ethernet: padding is not zero at %d", used+i) // RFC 894; else it may be somebody's data
	}
	return nil
}

var numbers = regexp.MustCompile(`\b(0x[0-9a-f]+|[0-9]+)\b`)

// Fault is what Verify says of a frame, without the numbers, and nothing of a right one: what a
// frame was wrong in before a translation it may be wrong in afterwards, and in nothing else.
func Fault(frame []byte) string {
	err := Verify(frame)
	if err == nil {
		return ""
	}
	return numbers.ReplaceAllString(err.Error(), "N")
}

func verifyARP(b []byte) error {
	if len(b) < 28 {
		return fmt.Errorf("arp: %d bytes, want 28", len(b))
	}
	if at16(b) != 1 || at16(b[2:]) != typeIPv4 || b[4] != 6 || b[5] != 4 {
		return fmt.Errorf("arp: header % x, want Ethernet and IPv4 with lengths 6 and 4", b[:6])
	}
	if op := at16(b[6:]); op != 1 && op != 2 {
		return fmt.Errorf("arp: operation %d, want 1 or 2", op)
	}
	return nil
}

// verifyIPv4 returns the length of the packet that b begins with. A quoted one may be longer than
// b.
func verifyIPv4(b []byte, quoted bool) (int, error) {
	if len(b) < 20 {
		return 0, fmt.Errorf("ipv4: %d bytes, want 20 or more", len(b))
	}
	if b[0]>>4 != 4 {
		return 0, fmt.Errorf("ipv4: version %d", b[0]>>4)
	}
	header, total := int(b[0]&15)*4, int(at16(b[2:]))
	if header < 20 || header > len(b) {
		return 0, fmt.Errorf("ipv4: header length %d in %d bytes", header, len(b))
	}
	if total < header || total > len(b) && !quoted {
		return 0, fmt.Errorf("ipv4: total length %d, header %d, there are %d bytes", total, header, len(b))
	}
	if got := onesSum(b[:header]); got != 0xffff {
		return 0, fmt.Errorf("ipv4: header checksum 0x%04x: header sums to 0x%04x, want 0xffff", at16(b[10:]), got)
	}
	for options := b[20:header]; len(options) > 0 && options[0] != 0; {
		size := 1
		if options[0] != 1 {
			if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
				return 0, fmt.Errorf("ipv4: option % x has a wrong length", options)
			}
			size = int(options[1])
		}
		options = options[size:]
	}
	offset, more := int(at16(b[6:])&0x1fff)*8, at16(b[6:])&0x2000 != 0
	if err := verifyFragment("ipv4", offset, total-header, more); err != nil {
		return 0, err
	}
	if offset != 0 || more || total > len(b) {
		return total, nil
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	return total, verifyTransport(src, dst, b[9], b[8], b[header:total], quoted)
}

func verifyFragment(family string, offset, size int, more bool) error {
	if more && size%8 != 0 {
		return fmt.Errorf("%s: fragment of %d bytes is not the last, want a multiple of 8", family, size)
	}
	if offset+size > 65535 {
		return fmt.Errorf("%s: fragment of %d bytes at %d reaches over 65535", family, size, offset)
	}
	return nil
}

// verifyIPv6 returns the length of the packet that b begins with. A quoted one may be longer than
// b.
func verifyIPv6(b []byte, quoted bool) (int, error) {
	if len(b) < 40 {
		return 0, fmt.Errorf("ipv6: %d bytes, want 40 or more", len(b))
	}
	if b[0]>>4 != 6 {
		return 0, fmt.Errorf("ipv6: version %d", b[0]>>4)
	}
	total := 40 + int(at16(b[4:]))
	if total > len(b) && !quoted {
		return 0, fmt.Errorf("ipv6: payload length %d, there are %d bytes", total-40, len(b)-40)
	}
	end := min(total, len(b))
	next, at := b[6], 40
	for first := true; ; first = false {
		if next != protoFrag && !isExtension(next) {
			break
		}
		if next == protoHop && !first {
			return 0, fmt.Errorf("ipv6: hop-by-hop options not first")
		}
		if at+8 > end {
			if quoted && total > len(b) {
				return total, nil
			}
			return 0, fmt.Errorf("ipv6: ends inside extension header %d", next)
		}
		size := (int(b[at+1]) + 1) * 8
		switch next {
		case protoAH:
			size = (int(b[at+1]) + 2) * 4
		case protoFrag:
			size = 8
		}
		if at+size > end {
			if quoted && total > len(b) {
				return total, nil
			}
			return 0, fmt.Errorf("ipv6: extension header %d of %d bytes, %d are left", next, size, end-at)
		}
		if next == protoHop || next == protoDst {
			if err := verifyOptions6(b[at+2 : at+size]); err != nil {
				return 0, err
			}
		}
		if next == protoFrag {
			offset, more := int(at16(b[at+2:])&^7), b[at+3]&1 != 0
			if err := verifyFragment("ipv6", offset, total-at-8, more); err != nil {
				return 0, err
			}
			if offset != 0 || more {
				return total, nil
			}
		}
		if next == protoRoute && b[at+3] != 0 {
			return total, nil // the checksums are about a destination that is not in the header yet
		}
		next = b[at]
		at += size
	}
	if total > len(b) {
		return total, nil
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	return total, verifyTransport(src, dst, next, b[7], b[at:total], quoted)
}

// verifyOptions6 reads the options of RFC 8200 §4.2.
func verifyOptions6(options []byte) error {
	for len(options) > 0 {
		size := 1
		if options[0] != 0 {
			if len(options) < 2 || int(options[1])+2 > len(options) {
				return fmt.Errorf("ipv6: option % x has a wrong length", options)
			}
			size = int(options[1]) + 2
		}
		options = options[size:]
	}
	return nil
}

func verifyTransport(src, dst netip.Addr, proto, ttl byte, b []byte, quoted bool) error {
	switch {
	case proto == protoTCP:
		if len(b) < 20 {
			return fmt.Errorf("tcp: %d bytes, want 20 or more", len(b))
		}
		if header := int(b[12]>>4) * 4; header < 20 || header > len(b) {
			return fmt.Errorf("tcp: header length %d in %d bytes", header, len(b))
		}
		for options := b[20 : int(b[12]>>4)*4]; len(options) > 0 && options[0] != 0; {
			size := 1
			if options[0] != 1 {
				if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
					return fmt.Errorf("tcp: option % x has a wrong length", options)
				}
				size = int(options[1])
			}
			options = options[size:]
		}
		return verifySum("tcp", at16(b[16:]), pseudoHeader(src, dst, proto, len(b)), b)
	case proto == protoUDP:
		if len(b) < 8 {
			return fmt.Errorf("udp: %d bytes, want 8 or more", len(b))
		}
		length := int(at16(b[4:]))
		if length < 8 || length > len(b) {
			return fmt.Errorf("udp: length %d in %d bytes", length, len(b))
		}
		if at16(b[6:]) == 0 {
			if src.Is4() {
				return nil
			}
			return fmt.Errorf("udp: checksum 0 in IPv6")
		}
		return verifySum("udp", at16(b[6:]), pseudoHeader(src, dst, proto, length), b[:length])
	case proto == protoUDPLite: // RFC 3828 §3.1
		if len(b) < 8 {
			return fmt.Errorf("udp-lite: %d bytes, want 8 or more", len(b))
		}
		coverage := int(at16(b[4:]))
		if coverage == 0 {
			coverage = len(b)
		}
		if coverage < 8 || coverage > len(b) {
			return fmt.Errorf("udp-lite: coverage %d in %d bytes", coverage, len(b))
		}
		if at16(b[6:]) == 0 {
			return fmt.Errorf("udp-lite: checksum 0")
		}
		return verifySum("udp-lite", at16(b[6:]), pseudoHeader(src, dst, proto, len(b)), b[:coverage])
	case proto == protoDCCP: // RFC 4340 §5.1, §9.2
		if len(b) < 12 {
			return fmt.Errorf("dccp: %d bytes, want 12 or more", len(b))
		}
		header, coverage := int(b[4])*4, len(b)
		if c := int(b[5] & 15); c > 0 {
			coverage = header + (c-1)*4
		}
		if header < 12 || header > len(b) || coverage > len(b) {
			return fmt.Errorf("dccp: header length %d and coverage %d in %d bytes", header, coverage, len(b))
		}
		return verifySum("dccp", at16(b[6:]), pseudoHeader(src, dst, proto, len(b)), b[:coverage])
	case proto == protoICMP && src.Is4():
		if len(b) < 8 {
			return fmt.Errorf("icmp: %d bytes, want 8 or more", len(b))
		}
		if err := verifySum("icmp", at16(b[2:]), nil, b); err != nil {
			return err
		}
		if typ := b[0]; !quoted && (typ == 3 || typ == 4 || typ == 5 || typ == 11 || typ == 12) {
			return verifyQuote("icmp", verifyIPv4, b[8:], int(b[5])*4, typ == 3 || typ == 11 || typ == 12)
		}
	case proto == protoICMP6 && !src.Is4():
		if len(b) < 8 {
			return fmt.Errorf("icmp6: %d bytes, want 8 or more", len(b))
		}
		if err := verifySum("icmp6", at16(b[2:]), pseudoHeader(src, dst, proto, len(b)), b); err != nil {
			return err
		}
		switch typ := b[0]; {
		case typ < 128 && !quoted:
			return verifyQuote("icmp6", verifyIPv6, b[8:], int(b[4])*8, typ == 1 || typ == 3)
		case typ == 135 || typ == 136:
			return verifyND(b, ttl, quoted)
		}
	}
	return nil
}

func verifySum(name string, field uint16, pseudo, b []byte) error {
	if got := onesSum(pseudo, b); got != 0xffff {
		return fmt.Errorf("%s: checksum 0x%04x: all sums to 0x%04x, want 0xffff", name, field, got)
	}
	return nil
}

// verifyQuote judges the packet that an ICMP error quotes. extended says that the type may carry
// the length of RFC 4884 §4, behind which other things follow; an 8-byte minimum of the transport
// is RFC 792's.
func verifyQuote(name string, verify func([]byte, bool) (int, error), b []byte, length int, extended bool) error {
	if extended && length != 0 {
		if length > len(b) {
			return fmt.Errorf("%s: quotes %d bytes by its length field, there are %d", name, length, len(b))
		}
		if err := verifyExtensions(name, length, b[length:]); err != nil {
			return err
		}
		b = b[:length]
	}
	total, err := verify(b, true)
	if err != nil {
		return fmt.Errorf("%s: quoted %w", name, err)
	}
	shortest := 48
	if name == "icmp" {
		shortest = int(b[0]&15)*4 + 8
	}
	if len(b) < min(total, shortest) {
		return fmt.Errorf("%s: quotes %d bytes, want %d or more", name, len(b), min(total, shortest))
	}
	return nil
}

// verifyExtensions judges what follows a quoted datagram of length bytes by RFC 4884: §3 the least
// length, §7 the header with its checksum (0: none), §8 the objects.
func verifyExtensions(name string, length int, b []byte) error {
	switch {
	case len(b) == 0:
		return nil
	case length < 128:
		return fmt.Errorf("%s: extensions behind %d quoted bytes, want 128 or more", name, length)
	case len(b) < 4 || b[0]>>4 != 2:
		return fmt.Errorf("%s: extensions begin with % x, want version 2", name, b[:min(len(b), 4)])
	case at16(b[2:]) != 0 && onesSum(b) != 0xffff:
		return fmt.Errorf("%s: extensions' checksum 0x%04x: all sums to 0x%04x, want 0xffff", name, at16(b[2:]), onesSum(b))
	}
	for objects := b[4:]; len(objects) > 0; {
		if len(objects) < 4 || at16(objects) < 4 || int(at16(objects)) > len(objects) {
			return fmt.Errorf("%s: extension object % x has a wrong length", name, objects[:min(len(objects), 4)])
		}
		objects = objects[at16(objects):]
	}
	return nil
}

func verifyND(b []byte, ttl byte, quoted bool) error {
	if ttl != 255 && !quoted {
		return fmt.Errorf("nd: hop limit %d, want 255", ttl)
	}
	if len(b) < 24 {
		return fmt.Errorf("nd: %d bytes, want 24 or more", len(b))
	}
	for options := b[24:]; len(options) > 0; {
		if len(options) < 2 || options[1] == 0 || int(options[1])*8 > len(options) {
			return fmt.Errorf("nd: option % x has a wrong length", options)
		}
		options = options[int(options[1])*8:]
	}
	return nil
}
