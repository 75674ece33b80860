// SPDX-License-Identifier: Apache-2.0

package packettext

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Format returns a line that Parse turns into exactly frame: the most telling form that can say
// every bit, raw where none can. Fields that hold their default are left out.
func Format(frame []byte) string {
	if line := formatEthernet(frame); line != "" {
		return line
	}
	return strings.TrimSpace("raw " + hex.EncodeToString(frame))
}

func formatEthernet(frame []byte) string {
	if len(frame) < 14 {
		return ""
	}
	head := formatMAC(frame[6:]) + " > " + formatMAC(frame)
	at := 12
	for ; len(frame) >= at+6; at += 4 {
		tag := map[uint16]string{typeVLAN: "vlan", typeQinQ: "qinq"}[at16(frame[at:])]
		if tag == "" {
			break
		}
		head += fmt.Sprintf(" %s=%d", tag, at16(frame[at+2:]))
	}
	kind, body := at16(frame[at:]), frame[at+2:]
	candidates := []string{}
	switch kind {
	case typeIPv4, typeIPv6:
		candidates = append(candidates, formatPacket(body, 0))
	case typeARP:
		candidates = append(candidates, formatARP(body, frame[6:12], frame[:6]))
	}
	candidates = append(candidates, join(fmt.Sprintf("ether type=0x%04x", kind), formatPayload(body)))
	for _, c := range candidates {
		if c == "" {
			continue
		}
		if b, err := Parse(head + " " + c); err == nil && bytes.Equal(b, frame) {
			return head + " " + c
		}
	}
	return ""
}

// join puts the words that are not empty in a line.
func join(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}

func formatMAC(b []byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}

// formatPayload shows text as text, zeros by their number, and the rest in hexadecimal.
func formatPayload(b []byte) string {
	text := bytes.TrimRight(b, "\x00")
	if len(b)-len(text) < 8 && len(text) > 0 {
		text = b // a few zeros are no padding
	}
	zeros, words := len(b)-len(text), ""
	switch {
	case len(text) == 0:
	case bytes.ContainsFunc(text, func(r rune) bool { return (r < ' ' || r > '~') && r != '\n' && r != '\r' && r != '\t' }):
		words = "hex:" + hex.EncodeToString(text)
	default:
		words = strconv.Quote(string(text))
	}
	for ; zeros > 0; zeros -= 65535 {
		words = join(words, fmt.Sprintf("len=%d", min(zeros, 65535)))
	}
	return words
}

func formatPad(b []byte) string {
	switch {
	case len(b) == 0:
		return ""
	case len(b) < 65536 && len(bytes.Trim(b, "\x00")) == 0:
		return fmt.Sprintf("pad=%d", len(b))
	}
	return "pad=hex:" + hex.EncodeToString(b)
}

// option shows a field unless it holds its default.
func option(key string, value, byDefault uint64) string {
	if value == byDefault {
		return ""
	}
	return fmt.Sprintf("%s=%d", key, value)
}

func optionSum(key string, value, right uint16) string {
	switch value {
	case right:
		return ""
	case badSum(right):
		return key + "=bad"
	case 0:
		return key + "=0"
	}
	return fmt.Sprintf("%s=0x%04x", key, value)
}

func optionHex(key string, b []byte) string {
	if len(b) == 0 {
		return ""
	}
	return key + "=" + hex.EncodeToString(b)
}

func formatARP(b, ethSrc, ethDst []byte) string {
	if len(b) < 28 || !bytes.Equal(b[:7], []byte{0, 1, 8, 0, 6, 4, 0}) {
		return ""
	}
	senderMAC, sender, targetMAC, target := b[8:14], netip.AddrFrom4([4]byte(b[14:])), b[18:24], netip.AddrFrom4([4]byte(b[24:]))
	mac := func(key string, m, byDefault []byte) string {
		if bytes.Equal(m, byDefault) {
			return ""
		}
		return key + "=" + formatMAC(m)
	}
	switch b[7] {
	case 1:
		return join(fmt.Sprintf("arp who-has %s tell %s", target, sender),
			mac("sha", senderMAC, ethSrc), mac("tha", targetMAC, make([]byte, 6)), formatPad(b[28:]))
	case 2:
		return join(fmt.Sprintf("arp reply %s is-at %s to %s", sender, formatMAC(senderMAC), target),
			mac("tha", targetMAC, ethDst), formatPad(b[28:]))
	}
	return ""
}

// formatPacket shows an IP packet, "" if no form can say all of it. The transport's own form comes
// first.
func formatPacket(b []byte, depth int) string {
	ip, ok := dissect(b)
	if !ok {
		return ""
	}
	ends := formatPad(ip.pad)
	if ip.cut {
		ends = fmt.Sprintf("cut=%d", len(b))
	}
	for _, form := range []func(*dissected, int) string{formatTransport, formatIP} {
		if text := form(ip, depth); text != "" {
			text = join(text, ends)
			if got, err := parsePacket(text, depth); err == nil && bytes.Equal(got, b) {
				return text
			}
		}
	}
	return ""
}

// dissected is an IP packet taken apart.
type dissected struct {
	src, dst  netip.Addr
	proto     byte
	ttl       byte
	later     bool   // a fragment that is not the first
	fields    string // of the IP header
	transport []byte // header and payload
	pad       []byte
	cut       bool // bytes are missing; they are filled in
}

func dissect(b []byte) (*dissected, bool) {
	if len(b) >= 20 && b[0]>>4 == 4 {
		return dissect4(b)
	}
	if len(b) >= 40 && b[0]>>4 == 6 {
		return dissect6(b)
	}
	return nil, false
}

func dissect4(b []byte) (*dissected, bool) {
	hlen, total, iplen := int(b[0]&15)*4, int(at16(b[2:])), ""
	if hlen < 20 || hlen > len(b) {
		return nil, false
	}
	if total < hlen {
		total, iplen = len(b), fmt.Sprintf("iplen=%d", total)
	}
	ip := &dissected{src: netip.AddrFrom4([4]byte(b[12:])), dst: netip.AddrFrom4([4]byte(b[16:])), proto: b[9], ttl: b[8]}
	word, id := at16(b[6:]), at16(b[4:])
	frag := option("ipid", uint64(id), 0)
	if word&0x3fff != 0 {
		frag = fmt.Sprintf("frag=%d:%d", id, word&0x1fff*8)
		if word&0x2000 != 0 {
			frag += ":more"
		}
		ip.later = word&0x1fff != 0
	}
	var df, rf string
	if word&0x4000 != 0 {
		df = "df"
	}
	if word&0x8000 != 0 {
		rf = "rf"
	}
	header := bytes.Clone(b[:hlen])
	copy(header[10:], []byte{0, 0})
	ip.fields = join(option("tos", uint64(b[1]), 0), frag, df, rf, optionHex("ipopt", b[20:hlen]), iplen,
		optionSum("ipsum", at16(b[10:]), ^onesSum(header)))
	ip.split(b, hlen, total)
	return ip, true
}

func dissect6(b []byte) (*dissected, bool) {
	word := at32(b)
	ip := &dissected{src: netip.AddrFrom16([16]byte(b[8:])), dst: netip.AddrFrom16([16]byte(b[24:])), proto: b[6], ttl: b[7]}
	total := 40 + int(at16(b[4:]))
	ip.fields = join(option("tos", uint64(word>>20&0xff), 0), option("flow", uint64(word&0xfffff), 0))
	at := 40
	for rest := b[at:min(total, len(b))]; len(rest) >= 8 && !ip.later; rest = b[at:min(total, len(b))] {
		size := (int(rest[1]) + 1) * 8
		switch ip.proto {
		case protoFrag:
			offset := at16(rest[2:])
			if strings.Contains(ip.fields, "frag=") || rest[1] != 0 || offset&6 != 0 {
				size = 0
				break
			}
			size = 8
			ip.later = offset>>3 != 0
			frag := fmt.Sprintf("frag=%d:%d", at32(rest[4:]), offset&^7)
			if offset&1 != 0 {
				frag += ":more"
			}
			ip.fields = join(ip.fields, frag)
		default:
			if !isExtension(ip.proto) {
				size = 0
				break
			}
			if ip.proto == protoAH {
				size = (int(rest[1]) + 2) * 4
			}
			if size <= len(rest) {
				ip.fields = join(ip.fields, formatExtension(ip.proto, rest[1:size]))
			}
		}
		if size == 0 || size > len(rest) {
			break
		}
		ip.proto = rest[0]
		at += size
	}
	ip.split(b, at, total)
	return ip, true
}

func formatExtension(number byte, body []byte) string {
	for name, n := range extensions {
		if n == number {
			if bytes.Equal(body, []byte{0, 1, 4, 0, 0, 0, 0}) {
				return "ext=" + name
			}
			return "ext=" + name + ":" + hex.EncodeToString(body)
		}
	}
	return fmt.Sprintf("ext=%d:%x", number, body)
}

// split gives ip the transport from at on and what lies behind total, the packet's own length. Of a
// packet that was cut short the missing part is filled in so that the text says least.
func (ip *dissected) split(b []byte, at, total int) {
	if total <= len(b) {
		ip.transport, ip.pad = b[at:total], b[total:]
		return
	}
	ip.cut = true
	have := len(b) - at
	ip.transport = append(bytes.Clone(b[at:]), make([]byte, total-len(b))...)
	t := ip.transport
	switch {
	case ip.later:
		return
	case ip.proto == protoTCP && len(t) >= 20:
		if have <= 12 {
			t[12] = 5 << 4
		}
		if have <= 14 {
			copy(t[14:], be16(windowFull))
		}
	case ip.proto == protoUDP && len(t) >= 8:
		if have <= 4 {
			copy(t[4:], be16(uint16(len(t))))
		}
	default:
		return
	}
	if right, at := transportSum(ip.src, ip.dst, ip.proto, t); have <= at {
		copy(t[at:], be16(right))
	}
}

// formatIP shows no more than the IP header.
func formatIP(ip *dissected, _ int) string {
	return join(fmt.Sprintf("ip proto=%d %s > %s", ip.proto, ip.src, ip.dst), option("ttl", uint64(ip.ttl), ttlDefault),
		ip.fields, formatPayload(ip.transport))
}

// formatTransport shows the transport too, "" if there is none that has a form.
func formatTransport(ip *dissected, depth int) string {
	t := ip.transport
	ttl := option("ttl", uint64(ip.ttl), ttlDefault)
	var head, payload string
	switch {
	case ip.later || len(t) < 8:
		return ""
	case ip.proto == protoUDP:
		head = join("udp "+ip.endpoints(), option("ulen", uint64(at16(t[4:])), uint64(len(t))))
		payload = formatPayload(t[8:])
	case ip.proto == protoTCP && len(t) >= 20:
		head, payload = formatTCP(ip)
	case ip.proto == protoICMP6 && (t[0] == 135 || t[0] == 136) && len(t) >= 24 && depth == 0:
		ttl = option("ttl", uint64(ip.ttl), ttlND)
		head = formatND(ip)
	case ip.proto == protoICMP || ip.proto == protoICMP6:
		head, payload = formatICMP(ip, depth)
	default:
		return ""
	}
	right, at := transportSum(ip.src, ip.dst, ip.proto, t)
	if at < 0 {
		return ""
	}
	return join(head, ttl, ip.fields, optionSum("sum", at16(t[at:]), right), payload)
}

func (ip *dissected) endpoints() string {
	return fmt.Sprintf("%s > %s", netip.AddrPortFrom(ip.src, at16(ip.transport)), netip.AddrPortFrom(ip.dst, at16(ip.transport[2:])))
}

func formatTCP(ip *dissected) (head, payload string) {
	t := ip.transport
	names := []string{}
	for i, name := range tcpFlags {
		if t[13]>>i&1 != 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		names = append(names, "none")
	}
	hlen, doff, options := int(t[12]>>4)*4, "", ""
	if hlen < 20 || hlen > len(t) {
		hlen, doff = 20, fmt.Sprintf("doff=%d", t[12]>>4)
	} else {
		options = formatTCPOptions(t[20:hlen])
	}
	head = join("tcp", ip.endpoints(), strings.Join(names, ","), option("seq", uint64(at32(t[4:])), 0),
		option("ack", uint64(at32(t[8:])), 0), option("win", uint64(at16(t[14:])), windowFull),
		option("urg", uint64(at16(t[18:])), 0), doff, options)
	return head, formatPayload(t[hlen:])
}

func formatTCPOptions(b []byte) (text string) {
	for len(b) > 0 {
		size, word := 0, ""
		switch {
		case b[0] == 0 && len(b) < 4 && len(bytes.Trim(b, "\x00")) == 0:
			return text // padding
		case b[0] == 1:
			size, word = 1, "nop"
		case b[0] < 2 || len(b) < 2 || b[1] < 2 || int(b[1]) > len(b):
			size, word = len(b), "opt="+hex.EncodeToString(b)
		default:
			size = int(b[1])
			switch [2]byte(b) {
			case [2]byte{2, 4}:
				word = fmt.Sprintf("mss=%d", at16(b[2:]))
			case [2]byte{3, 3}:
				word = fmt.Sprintf("ws=%d", b[2])
			case [2]byte{4, 2}:
				word = "sackok"
			case [2]byte{8, 10}:
				word = fmt.Sprintf("ts=%d:%d", at32(b[2:]), at32(b[6:]))
			default:
				word = "opt=" + hex.EncodeToString(b[:size])
			}
		}
		text, b = join(text, word), b[size:]
	}
	return text
}

func formatICMP(ip *dissected, depth int) (head, payload string) {
	t, kind, names := ip.transport, "icmp", icmpNames
	if ip.proto == protoICMP6 {
		kind, names = "icmp6", icmp6Names
	}
	name := ""
	for n, number := range names {
		if number == t[0] {
			name = n
		}
	}
	rest := at32(t[4:])
	fields := option("rest", uint64(rest), 0)
	addrs := fmt.Sprintf("%s > %s", ip.src, ip.dst)
	code := strconv.Itoa(int(t[1]))
	switch {
	case isQuery(name) && t[1] == 0:
		code = ""
		fields = join(option("id", uint64(rest>>16), 0), option("seq", uint64(rest&0xffff), 0))
	case name == "too-big" && t[1] == 0:
		code = ""
		fields = option("mtu", uint64(rest), 0)
	case name == "unreachable":
		if rest>>16 == 0 {
			fields = option("mtu", uint64(rest), 0)
		}
	case name == "time-exceeded":
	default:
		name, code = fmt.Sprintf("%d/%d", t[0], t[1]), ""
	}
	payload = formatPayload(t[8:])
	if isError(ip.proto, t[0]) && depth < maxNesting {
		if quoted := formatPacket(t[8:], depth+1); quoted != "" {
			payload = "quote(" + quoted + ")"
		}
	}
	return join(kind, name, code, addrs, fields), payload
}

// isError reports whether an ICMP message of that type quotes a packet.
func isError(proto, typ byte) bool {
	if proto == protoICMP6 {
		return typ < 128
	}
	return slices.Contains([]byte{3, 4, 5, 11, 12}, typ)
}

func formatND(ip *dissected) string {
	t := ip.transport
	head := map[byte]string{135: "nd solicit", 136: "nd advert"}[t[0]]
	head = join(head, fmt.Sprintf("%s > %s target=%s", ip.src, ip.dst, netip.AddrFrom16([16]byte(t[8:]))))
	for i, name := range ndFlags {
		if t[0] == 136 && t[4]&(0x80>>i) != 0 {
			head = join(head, name)
		}
	}
	options := t[24:]
	for len(options) >= 8 && options[1] == 1 && (options[0] == 1 || options[0] == 2) {
		head = join(head, map[byte]string{1: "slla", 2: "tlla"}[options[0]]+"="+formatMAC(options[2:]))
		options = options[8:]
	}
	return join(head, optionHex("ndopt", options))
}
