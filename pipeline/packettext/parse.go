// SPDX-License-Identifier: Apache-2.0

package packettext

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Parse returns the Ethernet frame that line describes.
func Parse(line string) (frame []byte, err error) {
	p, err := split(line, 1)
	if err != nil {
		return nil, err
	}
	defer p.rescue(&err)
	if !p.done() && p.words[0].text == "raw" {
		p.word("raw")
		var b []byte
		for !p.done() {
			b = append(b, p.hex(p.word("hexadecimal bytes"))...)
		}
		return b, nil
	}
	dst, src, tags := p.ethernet()
	kind, body := p.body(src, dst, 0)
	return slices.Concat(dst[:], src[:], tags, be16(kind), body), nil
}

// Reading goes top down and stops at the first fault, which travels as a panic from fail to rescue.

type fault struct{ error }

func (p *parser) rescue(err *error) {
	if r := recover(); r != nil {
		f, ok := r.(fault)
		if !ok {
			panic(r)
		}
		*err = f.error
	}
}

func (p *parser) fail(w word, format string, args ...any) {
	panic(fault{fmt.Errorf("column %d: %s: %s", w.column, cmp.Or(w.text, "end of line"), fmt.Sprintf(format, args...))})
}

type word struct {
	text   string
	column int
}

type parser struct {
	words []word
	end   word
}

// split cuts text, which begins at column, into words. A string is one word and so is quote(...).
func split(text string, column int) (*parser, error) {
	p := &parser{end: word{column: column + len(text)}}
	for i := 0; i < len(text); {
		if text[i] == ' ' || text[i] == '\t' {
			i++
			continue
		}
		start, depth, inString := i, 0, false
	scan:
		for ; i < len(text); i++ {
			switch c := text[i]; {
			case inString && c == '\\':
				i++
			case c == '"':
				inString = !inString
			case inString:
			case c == '(':
				depth++
			case c == ')':
				depth--
			case depth == 0 && (c == ' ' || c == '\t'):
				break scan
			}
		}
		if inString || depth != 0 {
			return nil, fmt.Errorf("column %d: %s: a quote or a parenthesis is not closed", column+start, text[start:])
		}
		p.words = append(p.words, word{text[start:min(i, len(text))], column + start})
	}
	return p, nil
}

func (p *parser) done() bool { return len(p.words) == 0 }

// word takes the next word.
func (p *parser) word(want string) word {
	if p.done() {
		p.fail(p.end, "want %s", want)
	}
	w := p.words[0]
	p.words = p.words[1:]
	return w
}

// expect takes a word that has to be text.
func (p *parser) expect(text string) {
	if w := p.word(strconv.Quote(text)); w.text != text {
		p.fail(w, "want %q here", text)
	}
}

func (p *parser) number(w word, text string, bits int) uint64 {
	v, err := strconv.ParseUint(text, 0, bits)
	if err != nil {
		p.fail(w, "want a number from 0 to %d", uint64(1)<<bits-1)
	}
	return v
}

func (p *parser) hex(w word) []byte { return p.hexIn(w, w.text) }

func (p *parser) hexIn(w word, text string) []byte {
	b, err := hex.DecodeString(text)
	if err != nil {
		p.fail(w, "want an even number of hexadecimal digits")
	}
	return b
}

func (p *parser) mac(w word, text string) (m [6]byte) {
	b, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil || len(b) != 6 || len(text) != 17 {
		p.fail(w, "want an Ethernet address such as 02:00:00:00:00:01")
	}
	return [6]byte(b)
}

func (p *parser) addr(w word, text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		p.fail(w, "want an IP address without zone")
	}
	return a
}

func (p *parser) addr4() netip.Addr {
	w := p.word("an IPv4 address")
	a := p.addr(w, w.text)
	if !a.Is4() {
		p.fail(w, "want an IPv4 address")
	}
	return a
}

// addrs reads A > B.
func (p *parser) addrs() (src, dst netip.Addr) {
	w := p.word("an IP address")
	src = p.addr(w, w.text)
	p.expect(">")
	w = p.word("an IP address")
	dst = p.addr(w, w.text)
	if src.Is4() != dst.Is4() {
		p.fail(w, "want an address of the family of %s", src)
	}
	return src, dst
}

// endpoints reads A:PORT > B:PORT.
func (p *parser) endpoints() (src, dst netip.AddrPort) {
	read := func() (netip.AddrPort, word) {
		w := p.word("an address and port")
		a, err := netip.ParseAddrPort(w.text)
		if err != nil || a.Addr().Zone() != "" {
			p.fail(w, "want ADDRESS:PORT or [ADDRESS]:PORT")
		}
		return a, w
	}
	src, _ = read()
	p.expect(">")
	dst, w := read()
	if src.Addr().Is4() != dst.Addr().Is4() {
		p.fail(w, "want an address of the family of %s", src)
	}
	return src, dst
}

// ethernet reads MAC > MAC and the tags.
func (p *parser) ethernet() (dst, src [6]byte, tags []byte) {
	w := p.word("an Ethernet address, or raw")
	src = p.mac(w, w.text)
	p.expect(">")
	w = p.word("an Ethernet address")
	dst = p.mac(w, w.text)
	for !p.done() {
		if tci, ok := strings.CutPrefix(p.words[0].text, "vlan="); ok {
			tags = slices.Concat(tags, be16(typeVLAN), be16(uint16(p.number(p.words[0], tci, 16))))
		} else if tci, ok := strings.CutPrefix(p.words[0].text, "qinq="); ok {
			tags = slices.Concat(tags, be16(typeQinQ), be16(uint16(p.number(p.words[0], tci, 16))))
		} else {
			break
		}
		p.words = p.words[1:]
	}
	return dst, src, tags
}

// body reads what stands behind the Ethernet header, or inside quote(...).
func (p *parser) body(ethSrc, ethDst [6]byte, depth int) (etherType uint16, b []byte) {
	w := p.word("udp, tcp, icmp, icmp6, nd, ip, arp or ether")
	build := map[string]func() *packet{"udp": p.udp, "tcp": p.tcp, "icmp": p.icmp, "icmp6": p.icmp, "nd": p.nd, "ip": p.ip}[w.text]
	switch {
	case build != nil:
		p.words = slices.Insert(p.words, 0, w) // icmp reads its own name
		ip := build()
		f := p.fields(depth)
		b = ip.build(f)
		b = append(b, f.pad()...)
		f.finish()
		if ip.src.Is4() {
			return typeIPv4, b
		}
		return typeIPv6, b
	case depth > 0:
		p.fail(w, "want udp, tcp, icmp, icmp6, nd or ip in quote()")
	case w.text == "arp":
		return typeARP, p.arp(ethSrc, ethDst)
	case w.text == "ether":
		f := p.fields(depth)
		kind := f.need("type", 16)
		b = append(f.payload, f.pad()...)
		f.finish()
		return uint16(kind), b
	}
	p.fail(w, "want udp, tcp, icmp, icmp6, nd, ip, arp or ether")
	return 0, nil
}

// field is one word behind the addresses.
type field struct {
	word
	key, value string
}

// fields are the words behind the addresses; each layer takes its own.
type fields struct {
	*parser
	left    []field
	payload []byte
}

func (p *parser) fields(depth int) *fields {
	f := &fields{parser: p}
	for !p.done() {
		w := p.word("a field")
		key, value, _ := strings.Cut(w.text, "=")
		inner, isQuote := strings.CutPrefix(w.text, "quote(")
		digits, isHex := strings.CutPrefix(w.text, "hex:")
		switch {
		case w.text[0] == '"':
			s, err := strconv.Unquote(w.text)
			if err != nil {
				p.fail(w, "want a string with Go's escapes")
			}
			f.payload = append(f.payload, s...)
		case isHex:
			f.payload = append(f.payload, p.hexIn(w, digits)...)
		case key == "len":
			f.payload = append(f.payload, make([]byte, p.number(w, value, 16))...)
		case isQuote && strings.HasSuffix(inner, ")"):
			f.payload = append(f.payload, p.quote(w, strings.TrimSuffix(inner, ")"), depth+1)...)
		default:
			f.left = append(f.left, field{w, key, value})
		}
	}
	return f
}

// quote reads the packet inside quote(...).
func (p *parser) quote(w word, text string, depth int) []byte {
	if depth > maxNesting {
		p.fail(w, "want at most %d quotes inside each other; write the innermost as hex:", maxNesting)
	}
	inner, err := split(text, w.column+len("quote("))
	if err != nil {
		panic(fault{err})
	}
	_, b := inner.body([6]byte{}, [6]byte{}, depth)
	return b
}

// take takes the first field of that key.
func (f *fields) take(key string) (field, bool) {
	for i, one := range f.left {
		if one.key == key {
			f.left = slices.Delete(f.left, i, i+1)
			return one, true
		}
	}
	return field{}, false
}

// takeAll takes all fields of the keys, in their order.
func (f *fields) takeAll(keys ...string) (taken []field) {
	f.left = slices.DeleteFunc(f.left, func(one field) bool {
		if slices.Contains(keys, one.key) {
			taken = append(taken, one)
			return true
		}
		return false
	})
	return taken
}

func (f *fields) has(key string) bool {
	one, ok := f.take(key)
	if ok && one.text != key {
		f.fail(one.word, "want %s without a value", key)
	}
	return ok
}

func (f *fields) number(key string, bits int, byDefault uint64) uint64 {
	if one, ok := f.take(key); ok {
		return f.parser.number(one.word, one.value, bits)
	}
	return byDefault
}

func (f *fields) need(key string, bits int) uint64 {
	one, ok := f.take(key)
	if !ok {
		f.fail(f.end, "want %s=", key)
	}
	return f.parser.number(one.word, one.value, bits)
}

func (f *fields) bytes(key string) []byte {
	if one, ok := f.take(key); ok {
		return f.hexIn(one.word, one.value)
	}
	return nil
}

// sum returns right unless the field says otherwise.
func (f *fields) sum(key string, right uint16) uint16 {
	one, ok := f.take(key)
	if !ok {
		return right
	}
	if one.value == "bad" {
		return badSum(right)
	}
	return uint16(f.parser.number(one.word, one.value, 16))
}

func (f *fields) macField(key string, byDefault [6]byte) [6]byte {
	if one, ok := f.take(key); ok {
		return f.mac(one.word, one.value)
	}
	return byDefault
}

func (f *fields) pad() []byte {
	one, ok := f.take("pad")
	if !ok {
		return nil
	}
	if digits, ok := strings.CutPrefix(one.value, "hex:"); ok {
		return f.hexIn(one.word, digits)
	}
	return make([]byte, f.parser.number(one.word, one.value, 16))
}

// finish refuses what nobody took.
func (f *fields) finish() {
	if len(f.left) > 0 {
		f.fail(f.left[0].word, "no such field here, or given twice")
	}
}

// arp reads what stands behind arp.
func (p *parser) arp(ethSrc, ethDst [6]byte) []byte {
	var operation byte
	var sender, target netip.Addr
	var senderMAC, targetMAC [6]byte
	switch w := p.word("who-has or reply"); w.text {
	case "who-has":
		operation, target = 1, p.addr4()
		p.expect("tell")
		sender, senderMAC = p.addr4(), ethSrc
	case "reply":
		operation, sender = 2, p.addr4()
		p.expect("is-at")
		m := p.word("an Ethernet address")
		senderMAC = p.mac(m, m.text)
		p.expect("to")
		target, targetMAC = p.addr4(), ethDst
	default:
		p.fail(w, "want who-has or reply")
	}
	f := p.fields(0)
	if f.payload != nil {
		f.fail(f.end, "arp has no payload; bytes behind it are pad=")
	}
	if operation == 1 {
		senderMAC = f.macField("sha", senderMAC)
	}
	targetMAC = f.macField("tha", targetMAC)
	b := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, operation},
		senderMAC[:], sender.AsSlice(), targetMAC[:], target.AsSlice(), f.pad())
	f.finish()
	return b
}

// packet is an IP packet whose head has been read; transport makes what it carries of the fields,
// with a checksum still to be filled in.
type packet struct {
	src, dst  netip.Addr
	proto     byte
	ttl       byte
	transport func(*fields) []byte
}

func (p *parser) udp() *packet {
	p.word("udp")
	src, dst := p.endpoints()
	return &packet{src.Addr(), dst.Addr(), protoUDP, ttlDefault, func(f *fields) []byte {
		length := f.number("ulen", 16, uint64(8+len(f.payload))&0xffff)
		return slices.Concat(be16(src.Port()), be16(dst.Port()), be16(uint16(length)), []byte{0, 0}, f.payload)
	}}
}

func (p *parser) tcp() *packet {
	p.word("tcp")
	src, dst := p.endpoints()
	flags := p.flags()
	return &packet{src.Addr(), dst.Addr(), protoTCP, ttlDefault, func(f *fields) []byte {
		options := f.tcpOptions()
		offset := f.number("doff", 4, uint64(5+len(options)/4))
		return slices.Concat(be16(src.Port()), be16(dst.Port()),
			be32(uint32(f.number("seq", 32, 0))), be32(uint32(f.number("ack", 32, 0))),
			[]byte{byte(offset << 4), flags}, be16(uint16(f.number("win", 16, windowFull))),
			[]byte{0, 0}, be16(uint16(f.number("urg", 16, 0))), options, f.payload)
	}}
}

func (p *parser) flags() (flags byte) {
	w := p.word("TCP flags")
	if w.text == "none" {
		return 0
	}
	for name := range strings.SplitSeq(w.text, ",") {
		bit := slices.Index(tcpFlags[:], name)
		if bit < 0 {
			p.fail(w, "want TCP flags such as SYN,ACK, or none")
		}
		flags |= 1 << bit
	}
	return flags
}

func (f *fields) tcpOptions() (options []byte) {
	for _, one := range f.takeAll("mss", "ws", "sackok", "ts", "nop", "opt") {
		switch one.key {
		case "mss":
			options = slices.Concat(options, []byte{2, 4}, be16(uint16(f.parser.number(one.word, one.value, 16))))
		case "ws":
			options = append(options, 3, 3, byte(f.parser.number(one.word, one.value, 8)))
		case "sackok":
			options = append(options, 4, 2)
		case "ts":
			value, echo, _ := strings.Cut(one.value, ":")
			options = slices.Concat(options, []byte{8, 10},
				be32(uint32(f.parser.number(one.word, value, 32))), be32(uint32(f.parser.number(one.word, echo, 32))))
		case "nop":
			options = append(options, 1)
		case "opt":
			options = append(options, f.hexIn(one.word, one.value)...)
		}
		if len(options) > 40 {
			f.fail(one.word, "TCP options hold at most 40 bytes")
		}
	}
	return pad4(options)
}

// pad4 fills up with zeros to a multiple of four bytes.
func pad4(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }

// icmp reads both families.
func (p *parser) icmp() *packet {
	name := p.word("icmp or icmp6")
	types, proto := icmpNames, byte(protoICMP)
	if name.text == "icmp6" {
		types, proto = icmp6Names, protoICMP6
	}
	w := p.word("an ICMP type")
	typ, named := types[w.text]
	code := uint64(0)
	switch {
	case !named:
		t, c, ok := strings.Cut(w.text, "/")
		if !ok {
			p.fail(w, "want echo-request, echo-reply, timestamp, timestamp-reply, unreachable, time-exceeded, too-big (icmp6) or TYPE/CODE")
		}
		typ, code = byte(p.number(w, t, 8)), p.number(w, c, 8)
	case w.text == "unreachable" || w.text == "time-exceeded":
		c := p.word("an ICMP code")
		code = p.number(c, c.text, 8)
	}
	src, dst := p.addrs()
	return &packet{src, dst, proto, ttlDefault, func(f *fields) []byte {
		rest := f.number("rest", 32, 0)
		switch {
		case isQuery(w.text):
			rest |= f.number("id", 16, 0)<<16 | f.number("seq", 16, 0)
		case w.text == "too-big":
			rest |= f.number("mtu", 32, 0)
		case w.text == "unreachable":
			rest |= f.number("mtu", 16, 0)
		}
		return slices.Concat([]byte{typ, byte(code), 0, 0}, be32(uint32(rest)), f.payload)
	}}
}

var (
	icmpNames = map[string]byte{"echo-reply": 0, "unreachable": 3, "echo-request": 8, "time-exceeded": 11,
		"timestamp": 13, "timestamp-reply": 14}
	icmp6Names = map[string]byte{"unreachable": 1, "too-big": 2, "time-exceeded": 3, "echo-request": 128, "echo-reply": 129}
)

// isQuery reports whether the ICMP message of that name has an identifier and a sequence number.
func isQuery(name string) bool {
	return slices.Contains([]string{"echo-request", "echo-reply", "timestamp", "timestamp-reply"}, name)
}

func (p *parser) nd() *packet {
	p.word("nd")
	kind := p.word("solicit or advert")
	typ := map[string]byte{"solicit": 135, "advert": 136}[kind.text]
	if typ == 0 {
		p.fail(kind, "want solicit or advert")
	}
	src, dst := p.addrs()
	return &packet{src, dst, protoICMP6, ttlND, func(f *fields) []byte {
		if f.payload != nil {
			f.fail(f.end, "nd has no payload; options are slla=, tlla= and ndopt=")
		}
		var flags byte
		if typ == 136 {
			for i, name := range ndFlags {
				if f.has(name) {
					flags |= 0x80 >> i
				}
			}
		}
		one, ok := f.take("target")
		if !ok {
			f.fail(f.end, "want target=")
		}
		target := f.addr(one.word, one.value).As16()
		b := slices.Concat([]byte{typ, 0, 0, 0, flags, 0, 0, 0}, target[:])
		for _, one := range f.takeAll("slla", "tlla", "ndopt") {
			if one.key == "ndopt" {
				b = append(b, f.hexIn(one.word, one.value)...)
				continue
			}
			m := f.mac(one.word, one.value)
			b = slices.Concat(b, []byte{map[string]byte{"slla": 1, "tlla": 2}[one.key], 1}, m[:])
		}
		return b
	}}
}

var ndFlags = [3]string{"router", "solicited", "override"}

func (p *parser) ip() *packet {
	p.word("ip")
	w := p.word("proto=")
	text, ok := strings.CutPrefix(w.text, "proto=")
	if !ok {
		p.fail(w, "want proto=")
	}
	proto := byte(p.number(w, text, 8))
	src, dst := p.addrs()
	return &packet{src, dst, proto, ttlDefault, nil}
}

// build makes the IP packet.
func (ip *packet) build(f *fields) []byte {
	ttl, tos := byte(f.number("ttl", 8, uint64(ip.ttl))), byte(f.number("tos", 8, 0))
	var frag *fragment
	var headers []byte // IPv6 extension headers
	next := ip.proto   // IPv6 next header
	if ip.src.Is4() {
		if one, ok := f.take("frag"); ok {
			frag = f.fragment(one, 16)
		}
	} else {
		frag, headers, next = f.extensions(ip.proto)
	}

	transport := f.payload
	if ip.transport != nil {
		if frag != nil && frag.offset != 0 {
			f.fail(f.end, "a later fragment begins with no header: write ip proto=%d", ip.proto)
		}
		transport = ip.transport(f)
		right, at := transportSum(ip.src, ip.dst, ip.proto, transport)
		if at < 0 {
			f.fail(f.end, "icmp is IPv4, icmp6 and nd are IPv6")
		}
		copy(transport[at:], be16(f.sum("sum", right)))
	}

	var b []byte
	if ip.src.Is4() {
		b = ip.header4(f, ttl, tos, frag, len(transport))
	} else {
		length := f.number("iplen", 16, uint64(f.length(len(headers)+len(transport))))
		word := 6<<28 | uint32(tos)<<20 | uint32(f.number("flow", 20, 0))
		b = slices.Concat(be32(word), be16(uint16(length)), []byte{next, ttl}, ip.src.AsSlice(), ip.dst.AsSlice(), headers)
	}
	b = append(b, transport...)
	if one, ok := f.take("cut"); ok {
		n := f.parser.number(one.word, one.value, 17)
		if n > uint64(len(b)) {
			f.fail(one.word, "the packet has only %d bytes", len(b))
		}
		b = b[:n]
	}
	return b
}

// length returns n, which a length field has to hold unless the line gives another.
func (f *fields) length(n int) int {
	if n > 65535 && !slices.ContainsFunc(f.left, func(one field) bool { return one.key == "iplen" }) {
		f.fail(f.end, "the packet is longer than its length field can say; give iplen=")
	}
	return n & 0xffff
}

func (ip *packet) header4(f *fields, ttl, tos byte, frag *fragment, payload int) []byte {
	options := pad4(f.bytes("ipopt"))
	if len(options) > 40 {
		f.fail(f.end, "IPv4 options hold at most 40 bytes")
	}
	word, id := uint16(0), uint32(0)
	if frag != nil {
		word, id = uint16(frag.offset/8), frag.id
		if frag.more {
			word |= 0x2000
		}
	} else {
		id = uint32(f.number("ipid", 16, 0))
	}
	if f.has("df") {
		word |= 0x4000
	}
	if f.has("rf") {
		word |= 0x8000
	}
	length := f.number("iplen", 16, uint64(f.length(20+len(options)+payload)))
	b := slices.Concat([]byte{byte(0x45 + len(options)/4), tos}, be16(uint16(length)), be16(uint16(id)), be16(word),
		[]byte{ttl, ip.proto, 0, 0}, ip.src.AsSlice(), ip.dst.AsSlice(), options)
	copy(b[10:], be16(f.sum("ipsum", ^onesSum(b))))
	return b
}

type fragment struct {
	id     uint32
	offset int // bytes
	more   bool
}

// fragment reads ID:OFFSET[:more].
func (f *fields) fragment(one field, idBits int) *fragment {
	parts := strings.Split(one.value, ":")
	if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && parts[2] != "more" {
		f.fail(one.word, "want frag=ID:OFFSET or frag=ID:OFFSET:more")
	}
	offset := f.parser.number(one.word, parts[1], 16)
	if offset%8 != 0 {
		f.fail(one.word, "want an offset that is a multiple of 8 bytes")
	}
	return &fragment{uint32(f.parser.number(one.word, parts[0], idBits)), int(offset), len(parts) == 3}
}

// extensions makes the IPv6 extension headers before proto.
func (f *fields) extensions(proto byte) (frag *fragment, headers []byte, first byte) {
	first = proto
	link := -1 // where the next header byte of the header before lies
	for _, one := range f.takeAll("ext", "frag") {
		number, body := byte(protoFrag), []byte(nil)
		if one.key == "frag" {
			if frag != nil {
				f.fail(one.word, "given twice")
			}
			frag = f.fragment(one, 32)
			word := uint16(frag.offset)
			if frag.more {
				word |= 1
			}
			body = slices.Concat([]byte{0}, be16(word), be32(frag.id))
		} else {
			name, digits, given := strings.Cut(one.value, ":")
			var known bool
			if number, known = extensions[name]; !known {
				number = byte(f.parser.number(one.word, name, 8))
			}
			if body = f.hexIn(one.word, digits); !given {
				body = []byte{0, 1, 4, 0, 0, 0, 0}
			}
		}
		if link < 0 {
			first = number
		} else {
			headers[link] = number
		}
		link = len(headers)
		headers = slices.Concat(headers, []byte{proto}, body)
	}
	return frag, headers, first
}

// parsePacket reads an IP packet as inside quote(...).
func parsePacket(text string, depth int) (b []byte, err error) {
	p, err := split(text, 1)
	if err != nil {
		return nil, err
	}
	defer p.rescue(&err)
	_, b = p.body([6]byte{}, [6]byte{}, depth)
	return b, nil
}
