// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/pipeline/drop"
	"weir/pipeline/header"
	"weir/pipeline/packettext"
)

// allLines are packets of every kind, by the port that they come in by.
func allLines(f func(port int, line string)) {
	for port, lines := range leakSeeds {
		for _, l := range lines {
			f(port, l)
		}
	}
}

// ip4 is an IPv4 frame for port with a right header checksum; options are padded to words.
func ip4(port int, proto byte, src, dst string, options, payload []byte) []byte {
	frame, err := packettext.Parse(fmt.Sprintf("%s > 02:00:00:00:00:%02x ip proto=%d %s > %s ipopt=%x hex:%x", neighborMAC, 1+port, proto, src, dst, options, payload))
	if err != nil {
		panic(err)
	}
	return frame
}

// ip6 is an IPv6 frame for port.
func ip6(port int, next byte, src, dst string, payload []byte) []byte {
	frame, err := packettext.Parse(fmt.Sprintf("%s > 02:00:00:00:00:%02x ip proto=%d %s > %s hex:%x", neighborMAC, 1+port, next, src, dst, payload))
	if err != nil {
		panic(err)
	}
	return frame
}

// stride is how far apart the values are that are tried: each, in short runs every n-th.
func stride(n int) int {
	if testing.Short() {
		return n
	}
	return 1
}

// M-1: frames from no byte at all to one less than they say.
func TestM01ShortFrames(t *testing.T) {
	a := newArena(t)
	allLines(func(port int, line string) {
		for n, f := range truncations(parseLine(t, port, line)) {
			if n >= header.EthernetSize && strings.HasPrefix(line, "arp") {
				if got := a.throw(port, f); got != "punt" && got != "drop punt_limited" { // control reads it, or not
					t.Fatalf("%d bytes of %s: %s", n, line, got)
				}
				a.after(10 * time.Millisecond)
				continue
			}
			a.refused(port, f, drop.ShortFrame)
		}
	})
	for n := range 60 {
		a.refused(0, make([]byte, n), drop.ShortFrame, drop.Martian) // no source address
		a.refused(1, bytes.Repeat([]byte{0xff}, n), drop.ShortFrame, drop.Martian)
		a.refused(0, bytes.Repeat([]byte{2}, n), drop.ShortFrame, drop.NotOurMAC)
	}
	a.rule(0)
}

// M-2: every version with every header length, in frames of three lengths and of both Ethernet
// types.
func TestM02BadIPHeaders(t *testing.T) {
	a := newArena(t)
	for _, c := range []struct {
		line string
		good byte // the one first byte that is right
	}{{"udp 10.0.0.5:1000 > 8.8.8.8:53 len=%d", 0x45}, {"udp [fd00::5]:1000 > [2001:4860::8]:53 len=%d", 0x60}} {
		for _, size := range []int{0, 30, 1400} {
			good := parseLine(t, 0, fmt.Sprintf(c.line, size))
			for first := range 256 {
				f := bytes.Clone(good)
				f[14] = byte(first)
				mend(f)
				if c.good == 0x60 && first>>4 == 6 { // the low bits are traffic class
					a.throw(0, f)
					continue
				}
				if byte(first) == c.good {
					if got := a.throw(0, f); strings.HasPrefix(got, "drop") {
						t.Fatalf("the right one: %s", got)
					}
					continue
				}
				a.refused(0, f, drop.BadIPHeader, drop.BadIPChecksum, drop.ShortFrame, drop.BadTransport)
			}
		}
	}
	a.refused(0, ether(0, header.EtherTypeIPv6, parseLine(t, 0, "udp 10.0.0.5:1000 > 8.8.8.8:53 len=30")[14:]), drop.BadIPHeader)
	a.refused(0, ether(0, header.EtherTypeIPv4, parseLine(t, 0, "udp [fd00::5]:1000 > [2001:4860::8]:53")[14:]), drop.BadIPHeader)
	a.rule(2)
}

// M-3: every total length, in a frame that is cut there or goes on; what is behind the packet is
// not the packet's.
func TestM03TruncatedAndTrailer(t *testing.T) {
	a := newArena(t)
	for _, line := range []string{"udp 10.0.0.5:1000 > 8.8.8.8:53 len=12", "tcp 10.0.0.5:1000 > 8.8.8.8:53 ACK", "icmp echo-request 10.0.0.6 > 8.8.8.8 id=7 len=9"} {
		good := parseLine(t, 0, line)
		for total := range 80 {
			f := bytes.Clone(good)
			binary.BigEndian.PutUint16(f[16:], uint16(total))
			mend(f)
			switch {
			case total < 20:
				a.refused(0, f, drop.BadIPHeader)
			case total > len(good)-14:
				a.refused(0, f, drop.ShortFrame)
			case total < len(good)-14 && strings.HasPrefix(line, "udp"): // UDP's own length says more
				a.refused(0, f, drop.BadTransport)
			case total < 28 || total < 40 && strings.HasPrefix(line, "tcp"):
				a.refused(0, f, drop.BadTransport)
			}
		}
		for trailer := range 64 {
			f := append(bytes.Clone(good), bytes.Repeat([]byte{0xa5}, trailer)...)
			p := a.process(0, f)[0]
			if p.port != 1 || len(p.frame) != len(good) || packettext.Verify(p.frame) != nil {
				t.Fatalf("%s with %d bytes behind it: %d bytes leave by port %d, want %d", line, trailer, len(p.frame), p.port, len(good))
			}
		}
	}
	a.rule(2) // the acknowledgement begins none
}

// M-4: every bit of an IPv4 header turned, and a checksum of zero and of all ones.
func TestM04HeaderChecksum(t *testing.T) {
	a := newArena(t)
	for _, line := range []string{"udp 10.0.0.5:1000 > 8.8.8.8:53 len=20", "udp 10.0.0.5:1000 > 8.8.8.8:53 ipopt=01010101 len=20"} {
		good := parseLine(t, 0, line)
		header := int(good[14]&15) * 4
		for bit := range header * 8 {
			f := bytes.Clone(good)
			f[14+bit/8] ^= 0x80 >> (bit % 8)
			a.refused(0, f, drop.BadIPChecksum, drop.BadIPHeader, drop.ShortFrame)
			if bit >= 80 && bit < 96 {
				a.refused(0, f, drop.BadIPChecksum)
			}
		}
		for _, sum := range []uint16{0, 0xffff} {
			f := bytes.Clone(good)
			binary.BigEndian.PutUint16(f[24:], sum)
			a.refused(0, f, drop.BadIPChecksum)
		}
	}
	a.rule(0)
}

// M-5: transport headers cut at every byte in packets whose lengths agree, and lengths in them that
// lie.
func TestM05TransportHeaders(t *testing.T) {
	a := newArena(t)
	rest := bytes.Repeat([]byte{0x5a}, 64)
	for _, c := range []struct {
		proto    byte
		src, dst string
		payload  []byte
		shortest int
	}{
		{header.ProtocolTCP, "10.0.0.5", "8.8.8.8", []byte{3, 232, 0, 53, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0}, 20},
		{header.ProtocolUDP, "10.0.0.5", "8.8.8.8", []byte{3, 232, 0, 53, 0, 8, 0, 0}, 8},
		{header.ProtocolICMP, "10.0.0.5", "8.8.8.8", []byte{8, 0, 0, 0, 0, 7, 0, 0}, 8},
		{header.ProtocolDCCP, "10.0.0.5", "8.8.8.8", []byte{3, 232, 0, 53, 4, 0, 0, 0}, 8},
		{header.ProtocolUDPLite, "10.0.0.5", "8.8.8.8", []byte{3, 232, 0, 53, 0, 8, 0, 0}, 8},
		{header.ProtocolTCP, "fd00::5", "2001:4860::8", []byte{3, 232, 0, 53, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0}, 20},
		{header.ProtocolUDP, "fd00::5", "2001:4860::8", []byte{3, 232, 0, 53, 0, 8, 1, 1}, 8},
		{header.ProtocolICMPv6, "fd00::5", "2001:4860::8", []byte{128, 0, 0, 0, 0, 7, 0, 0}, 8},
	} {
		build := func(payload []byte) []byte {
			if strings.Contains(c.src, ":") {
				return ip6(0, c.proto, c.src, c.dst, payload)
			}
			return ip4(0, c.proto, c.src, c.dst, nil, payload)
		}
		whole := append(bytes.Clone(c.payload), rest...)
		for n := range 61 {
			f := build(whole[:n])
			if n < c.shortest {
				a.refused(0, f, drop.BadTransport)
			} else if got := a.throw(0, f); strings.HasPrefix(got, "drop") {
				t.Fatalf("protocol %d with %d bytes: %s", c.proto, n, got)
			}
		}
		switch c.proto {
		case header.ProtocolTCP:
			for offset := range 16 {
				whole[12] = byte(offset << 4)
				for n := 20; n < 64; n++ {
					if f := build(whole[:n]); offset < 5 || offset*4 > n {
						a.refused(0, f, drop.BadTransport)
					} else if got := a.throw(0, f); strings.HasPrefix(got, "drop") {
						t.Fatalf("TCP data offset %d in %d bytes: %s", offset, n, got)
					}
				}
			}
		case header.ProtocolUDP:
			for _, length := range []int{0, 1, 7, 8, 9, 31, 32, 33, 34, 0x7fff, 0x8000, 0xffff} {
				binary.BigEndian.PutUint16(whole[4:], uint16(length))
				if f := build(whole[:32]); length < 8 || length > 32 {
					a.refused(0, f, drop.BadTransport)
				} else if got := a.throw(0, f); strings.HasPrefix(got, "drop") {
					t.Fatalf("UDP length %d of 32: %s", length, got)
				}
			}
		}
	}
	a.rule(-1)
}

// M-6: TCP options of every kind and length at every place: what reads them ends, and changes
// nothing but an MSS.
func TestM06TCPOptions(t *testing.T) {
	a := newArena(t)
	var lists [][]byte
	for kind := 0; kind < 256; kind += stride(16) {
		for _, length := range []int{0, 1, 2, 3, 4, 5, 10, 40, 41, 255} {
			for _, before := range []string{"", "\x01", "\x01\x01\x01", "\x02\x04\x05\xb4"} {
				lists = append(lists, append([]byte(before), byte(kind), byte(length), 5, 0xb4, 1, 2))
			}
		}
	}
	lists = append(lists, bytes.Repeat([]byte{1}, 40), bytes.Repeat([]byte{0}, 40), bytes.Repeat([]byte{2, 4, 5, 0xb4}, 10),
		bytes.Repeat([]byte{2, 0}, 20), bytes.Repeat([]byte{2, 4}, 20), append(bytes.Repeat([]byte{1}, 39), 2), append(bytes.Repeat([]byte{1}, 37), 2, 4, 5))
	for _, flags := range []string{"SYN", "SYN,ACK", "ACK"} {
		for _, options := range lists {
			f := parseLine(t, 0, fmt.Sprintf("tcp 10.0.0.5:1000 > 8.8.8.8:443 %s opt=%x len=5", flags, options))
			p := a.process(0, bytes.Clone(f))[0]
			if p.port != 1 || len(p.frame) != len(f) {
				t.Fatalf("%s: %d bytes leave by port %d", packettext.Format(f), len(p.frame), p.port)
			}
			for at := 54; at < len(f); at++ {
				if at >= 56 && p.frame[at] != f[at] && (flags == "ACK" || f[at-2] != 2 || f[at-1] != 4) && (f[at-3] != 2 || f[at-2] != 4) {
					t.Fatalf("%s\nleaves as\n%s", packettext.Format(f), packettext.Format(p.frame))
				}
			}
		}
	}
	a.rule(1)
}

// M-7: all 256 combinations of TCP flags, each way, with and without a flow: nothing begins one but
// SYN alone, or with ECN's flags.
func TestM07TCPFlags(t *testing.T) {
	const syn, others = 0x02, 0xe8 // which may come with it: PSH, URG, ECE, CWR
	a := newArena(t)
	flagged := func(port int, line string, flags int) []byte {
		f := parseLine(t, port, line)
		at := 14 + 20
		if f[12] == 0x86 {
			at = 14 + 40
		}
		f[at+13] = byte(flags)
		return f
	}
	for flags := range 256 {
		begins := flags&^others == syn
		for _, line := range []string{"tcp 10.0.0.5:1000 > 8.8.8.8:443 none", "tcp 10.0.0.6:1000 > 8.8.8.8:443 none",
			"tcp [fd00::5]:1000 > [2001:4860::8]:443 none", "tcp [fd00::6]:1000 > [2001:4860::8]:443 none"} {
			shared := strings.Contains(line, "10.0.0.6") || strings.Contains(line, "fd00::6")
			before := a.sessions.Len()
			got := a.throw(0, flagged(0, line, flags))
			if made := a.sessions.Len() - before; (made == 1) != begins {
				t.Fatalf("%s with flags %#02x made %d sessions", line, flags, made)
			}
			if want := "drop no_session"; (got == want) != (shared && !begins) {
				t.Fatalf("%s with flags %#02x: %s", line, flags, got)
			}
			if begins {
				a.restart()
			}
		}
		// From outside to a floating address everything arrives; without a session nothing else
		// does.
		if got := a.throw(1, flagged(1, "tcp 8.8.4.4:443 > 192.0.2.5:1000 none", flags)); strings.HasPrefix(got, "drop") {
			t.Fatalf("from outside to a floating address with flags %#02x: %s", flags, got)
		}
		a.refused(1, flagged(1, "tcp 8.8.4.4:443 > 192.0.2.6:1000 none", flags), drop.Unsolicited)
		if n := a.sessions.Len() - len(calmFlows); n != 0 {
			t.Fatalf("from outside flags %#02x made %d sessions", flags, n)
		}
	}
	// With a flow they pass, but for resets that are none of the flow's.
	for _, line := range []string{"tcp 10.0.0.5:1000 > 8.8.8.8:443 ", "tcp 10.0.0.6:1000 > 8.8.8.8:443 "} {
		for flags := range 256 {
			a.restart()
			out := a.through(0, 1, parseLine(t, 0, line+"SYN seq=1"))
			back := mirror(t, out)
			a.through(1, 0, back)
			a.through(0, 1, parseLine(t, 0, line+"ACK seq=2 ack=2"))
			a.through(0, 1, flagged(0, line+"none seq=2 ack=2", flags))
			back[47] = byte(flags)
			binary.BigEndian.PutUint32(back[38:], 2)
			if got := a.throw(1, back); strings.HasPrefix(got, "drop") && flags&4 == 0 {
				t.Fatalf("from outside, of a flow, with flags %#02x: %s", flags, got)
			}
			if n := a.sessions.Len() - len(calmFlows); n != 1 {
				t.Fatalf("flags %#02x: %d sessions, want 1", flags, n)
			}
		}
	}
	a.restart()
	a.rule(0)
}

// M-8: IPv4 options of every type and length.
func TestM08IPv4Options(t *testing.T) {
	a := newArena(t)
	udp := []byte{3, 232, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4}
	for kind := 0; kind < 256; kind += stride(8) {
		for length := range 48 {
			for _, before := range []string{"", "\x01\x01"} {
				options := append([]byte(before), byte(kind))
				if kind > 1 {
					options = append(options, byte(length))
					for len(options)-len(before) < min(length, 40-len(before)) {
						options = append(options, 4) // also a pointer at its least
					}
				}
				for len(options)%4 != 0 {
					options = append(options, 0)
				}
				f := ip4(0, header.ProtocolUDP, "10.0.0.5", "8.8.8.8", options, udp)
				route := kind == 131 || kind == 137
				lies := kind > 1 && (length < 2 || length > len(options)-len(before))
				got := a.throw(0, f)
				if dropped := got == "drop bad_ip_header"; dropped != (route || lies) {
					t.Fatalf("option %d of length %d in %x: %s", kind, length, options, got)
				}
			}
		}
	}
	// A source route anywhere among others, and the payload found behind options of every length.
	for n := range 10 {
		noops := bytes.Repeat([]byte{1}, 4*n)
		if got := a.throw(0, ip4(0, header.ProtocolUDP, "10.0.0.5", "8.8.8.8", noops, udp)); !strings.Contains(got, "udp 192.0.2.5:1000 > 8.8.8.8:53") {
			t.Fatalf("%d words of options: %s", n, got)
		}
		if n > 0 {
			a.refused(0, ip4(0, header.ProtocolUDP, "10.0.0.5", "8.8.8.8", append(noops[1:], 131, 3, 4, 0, 0)[:4*n+4], udp), drop.BadIPHeader)
		}
	}
	a.rule(1)
}

// M-9: every IPv6 payload length, and headers cut in the middle.
func TestM09IPv6Lengths(t *testing.T) {
	a := newArena(t)
	good := parseLine(t, 0, "udp [fd00::5]:1000 > [2001:4860::8]:53 len=12")
	for n := range 65536 {
		if n > 100 && n%97 != 0 {
			continue
		}
		f := bytes.Clone(good)
		binary.BigEndian.PutUint16(f[18:], uint16(n))
		switch {
		case n > 20:
			a.refused(0, f, drop.ShortFrame)
		case n < 20: // UDP says more than there is
			a.refused(0, f, drop.BadTransport)
		}
	}
	a.refused(0, good[:14+39], drop.ShortFrame)
	for trailer := range 20 {
		if p := a.process(0, append(bytes.Clone(good), make([]byte, trailer)...))[0]; p.port != 1 || len(p.frame) != len(good) {
			t.Fatalf("%d bytes behind the packet: %d bytes leave, want %d", trailer, len(p.frame), len(good))
		}
	}
	for _, option := range []string{"c20400010000", "0000c2040000", "c20300010000"} { // jumbo payload, and malformed ones
		a.refused(0, parseLine(t, 0, "udp [fd00::5]:1000 > [2001:4860::8]:53 ext=hop:00"+option[2:]), drop.BadExtension)
		a.refused(0, parseLine(t, 0, "udp [fd00::5]:1000 > [2001:4860::8]:53 iplen=0 ext=hop:00"+option), drop.BadExtension)
	}
	a.rule(1)
}

// M-10: chains of extension headers: too many, too long, looping, out of order, cut at every byte,
// of every length and number.
func TestM10ExtensionChains(t *testing.T) {
	a := newArena(t)
	const udp = "udp [fd00::5]:1000 > [2001:4860::8]:53 "
	passes := func(f []byte) {
		t.Helper()
		if got := a.throw(0, f); !strings.HasPrefix(got, "udp [2001:db8:1::5]:1000") {
			t.Fatalf("%s: %s", packettext.Format(f), got)
		}
	}
	for n := range 65 {
		for _, name := range []string{"dst", "mobility", "139", "140", "253", "254", "route:00040000000000"} {
			f := parseLine(t, 0, udp+strings.Repeat(" ext="+name, n))
			passes(f)
		}
		if f := parseLine(t, 0, udp+strings.Repeat(" ext=hop", n)); n <= 1 {
			passes(f)
		} else {
			a.refused(0, f, drop.BadExtension)
		}
	}
	// One header of every length that a packet has room for.
	for words := range 256 {
		size := (words + 1) * 8
		if f := parseLine(t, 0, udp+fmt.Sprintf(" ext=dst:%02x%s", words, strings.Repeat("00", size-2))); len(f) <= 1514 {
			passes(f)
		} else {
			a.refused(0, f, drop.TooBig)
		}
		// The same number in AH counts words of four bytes; whatever it says, no translation keeps
		// it (RFC 4302).
		a.refused(0, parseLine(t, 0, udp+fmt.Sprintf(" ext=51:%02x%s", words, strings.Repeat("00", 1400))), drop.BadExtension, drop.BadTransport, drop.Untranslatable)
		a.refused(0, parseLine(t, 0, udp+fmt.Sprintf(" ext=ah:%02x%s", words, strings.Repeat("00", max(6, (words+2)*4-2)))), drop.BadExtension, drop.BadTransport, drop.Untranslatable)
	}
	// Every number behind the fixed header and behind an option header, with nothing, or not much,
	// behind it.
	for next := range 256 {
		for _, size := range []int{0, 1, 7, 8, 40} {
			for _, f := range [][]byte{
				ip6(0, byte(next), "fd00::5", "2001:4860::8", make([]byte, size)),
				ip6(0, header.ProtocolDestination, "fd00::5", "2001:4860::8", append([]byte{byte(next), 0, 1, 4, 0, 0, 0, 0}, make([]byte, size)...)),
			} {
				got := a.throw(0, f)
				if leaves := strings.HasPrefix(got, "ip proto=59"); leaves != (next == 59) {
					t.Fatalf("next header %d, %d bytes: %s", next, size, got)
				}
			}
		}
	}
	for _, chain := range []string{
		" ext=dst ext=hop", " ext=route:00000000000000", " ext=route:02000200000000" + strings.Repeat("00", 16), " frag=9:0 ext=44:00000000000000",
	} {
		a.refused(0, parseLine(t, 0, udp+chain), drop.BadExtension, drop.Untranslatable, drop.Fragment)
	}
	// Cut at every byte, with lengths that agree.
	f := parseLine(t, 0, udp+" ext=hop ext=dst ext=route:00040000000000 ext=mobility ext=253")
	for n := 54; n < len(f); n++ {
		cut := bytes.Clone(f[:n])
		binary.BigEndian.PutUint16(cut[18:], uint16(n-54))
		a.refused(0, cut, drop.BadExtension, drop.BadTransport)
	}
	passes(f)
	a.rule(-1)
}

// M-11: VLAN tags on a port without VLANs: one to three of them, every type, VID and place to be
// cut at.
func TestM11VLANTags(t *testing.T) {
	a := newArena(t)
	packet := parseLine(t, 0, "udp 10.0.0.5:1000 > 8.8.8.8:53")[12:]
	for _, types := range [][]uint16{{0x8100}, {0x88a8}, {0x9100}, {0x8100, 0x8100}, {0x88a8, 0x8100}, {0x9100, 0x8100}, {0x88a8, 0x8100, 0x8100}} {
		for _, vid := range []uint16{0, 1, 100, 4094, 4095, 0xe000} {
			var tags []byte
			for _, kind := range types[1:] {
				tags = binary.BigEndian.AppendUint16(tags, vid)
				tags = binary.BigEndian.AppendUint16(tags, kind)
			}
			tags = binary.BigEndian.AppendUint16(tags, vid)
			f := ether(0, types[0], append(tags, packet...))
			// One tag of VID 0 is a priority: the frame is an untagged one.
			priority := len(types) == 1 && types[0] == 0x8100 && vid&0xfff == 0
			for n := header.EthernetSize; n <= len(f); n++ {
				if !priority {
					a.refused(0, f[:n], drop.VLANTag)
					a.refused(1, append([]byte{2, 0, 0, 0, 0, 2}, f[6:n]...), drop.VLANTag)
				} else if n < len(f) {
					a.refused(0, bytes.Clone(f[:n]), drop.VLANTag, drop.ShortFrame)
				}
			}
		}
	}
	a.rule(0)
}

// M-12: every Ethernet type and every 802.3 length, and ARP that is none of Ethernet's and IPv4's.
func TestM12EtherTypes(t *testing.T) {
	a := newArena(t)
	packet := parseLine(t, 0, "udp 10.0.0.5:1000 > 8.8.8.8:53 len=20")[14:]
	for kind := 0; kind < 65536; kind += stride(16) {
		f := ether(0, uint16(kind), packet)
		switch kind {
		case header.EtherTypeIPv4, header.EtherTypeARP:
		case 0x8100, 0x88a8, 0x9100:
			a.refused(0, f, drop.VLANTag)
		case header.EtherTypeIPv6:
			a.refused(0, f, drop.BadIPHeader)
		default:
			a.refused(0, f, drop.BadEtherType)
		}
	}
	a.rule(0)
}

// M-12: control answers and learns from ARP of Ethernet and IPv4 only, and believes nobody who has
// weir's own address.
func TestM12ARP(t *testing.T) {
	c := newControl(t, responderConfig)
	c.quiet()
	good := parseLine(t, 0, "arp who-has 10.0.0.1 tell 10.0.0.5")
	ask := func(f []byte) []string {
		c.after(time.Second)
		c.rig.frameFate(0, f)
		var said []string
		for _, s := range append(slices.Clone(c.said), c.poll()...) {
			if strings.Contains(s, "arp reply 10.0.0.1 is-at") {
				said = append(said, s)
			}
		}
		return said
	}
	if len(ask(bytes.Clone(good))) != 1 {
		t.Fatal("a right question has no answer")
	}
	for at, values := range map[int][]byte{14: {1, 0xff}, 15: {0, 2, 6, 255}, 16: {0, 0x86}, 17: {1, 6, 0xdd}, 18: {0, 5, 7, 255}, 19: {0, 3, 5, 16, 255}, 20: {1, 255}, 21: {0, 2, 3, 4, 8, 255}} {
		for _, v := range values {
			f := bytes.Clone(good)
			f[at] = v
			if said := ask(f); len(said) > 0 {
				t.Errorf("%x is answered: %q", f[14:], said)
			}
		}
	}
	for _, f := range truncations(good) {
		if said := ask(bytes.Clone(f)); len(said) > 0 {
			t.Errorf("%x is answered: %q", f, said)
		}
	}
	for _, line := range []string{"arp who-has 10.0.0.1 tell 10.0.0.1"} {
		if said := ask(parseLine(t, 0, line)); len(said) > 0 {
			t.Errorf("%s is answered: %q", line, said)
		}
	}
	c.balanced()
}

// M-13: frames for other stations, for groups, and from what is no station.
func TestM13EthernetAddresses(t *testing.T) {
	a := newArena(t)
	const udp4, udp6 = " udp 10.0.0.5:1000 > 8.8.8.8:53", " udp [fd00::5]:1000 > [2001:4860::8]:53"
	for _, udp := range []string{udp4, udp6} {
		for _, dst := range []string{"02:00:00:00:00:02", "02:00:00:00:00:ff", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01", "01:80:c2:00:00:00", "00:00:00:00:00:00"} {
			f, err := packettext.Parse(neighborMAC + " > " + dst + udp)
			if err != nil {
				t.Fatal(err)
			}
			a.refused(0, f, drop.NotOurMAC)
		}
		for _, src := range []string{"00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01", "02:00:00:00:00:01"} {
			f, err := packettext.Parse(src + " > 02:00:00:00:00:01" + udp)
			if err != nil {
				t.Fatal(err)
			}
			a.refused(0, f, drop.Martian)
		}
	}
	a.rule(0)
}

// M-17: packets from where they go to, from weir itself, and to it.
func TestM17LAND(t *testing.T) {
	a := newArena(t)
	for _, c := range []struct {
		port    int
		line    string
		reasons []drop.Reason
	}{
		{0, "tcp 10.0.0.5:80 > 10.0.0.5:80 SYN", []drop.Reason{drop.Martian}},
		{0, "tcp [fd00::5]:80 > [fd00::5]:80 SYN", []drop.Reason{drop.Martian}},
		{1, "tcp 192.0.2.5:80 > 192.0.2.5:80 SYN", []drop.Reason{drop.Martian}},
		{1, "tcp [2001:db8:1::5]:80 > [2001:db8:1::5]:80 SYN", []drop.Reason{drop.Martian}},
		{1, "tcp 198.51.100.2:80 > 198.51.100.2:80 SYN", []drop.Reason{drop.Martian}},
		{0, "udp 10.0.0.1:5 > 10.0.0.5:5", []drop.Reason{drop.AntiSpoof}},
		{0, "udp [fd00::1]:5 > [fd00::5]:5", []drop.Reason{drop.AntiSpoof}},
		{1, "udp 198.51.100.2:5 > 192.0.2.5:5", []drop.Reason{drop.OwnSource}},
		{1, "udp [2001:db8::2]:5 > [2001:db8:1::5]:5", []drop.Reason{drop.OwnSource}},
		{1, "udp 192.0.2.20:5 > 192.0.2.5:5", []drop.Reason{drop.OwnSource}},
		{1, "udp 192.0.2.40:5 > 192.0.2.5:5", []drop.Reason{drop.OwnSource}},
		{1, "udp [2001:db8:1::40]:5 > [2001:db8:1::5]:5", []drop.Reason{drop.OwnSource}},
		{1, "udp 8.8.8.8:5 > 198.51.100.2:5", []drop.Reason{drop.NoService}},
		{1, "tcp [2001:4860::8]:5 > [2001:db8::2]:179 SYN", []drop.Reason{drop.NoService}},
		{0, "tcp 10.0.0.5:5 > 10.0.0.1:179 SYN", []drop.Reason{drop.NoService}},
	} {
		a.refused(c.port, parseLine(t, c.port, c.line), c.reasons...)
	}
	a.rule(0)
}

// M-18: sources that are nobody's on the Internet, and destinations that are nobody's inside.
func TestM18Martians(t *testing.T) {
	a := newArena(t)
	for _, addr := range []string{"0.0.0.0", "0.255.255.255", "127.0.0.1", "127.255.255.255", "169.254.0.1", "169.254.255.255", "224.0.0.0", "224.0.0.1",
		"239.255.255.255", "240.0.0.0", "255.255.255.254", "255.255.255.255"} {
		a.refused(1, parseLine(t, 1, "udp "+addr+":53 > 192.0.2.5:1000"), drop.Martian)
		a.refused(0, parseLine(t, 0, "udp 10.0.0.5:1000 > "+addr+":53"), drop.Martian)
		a.refused(0, parseLine(t, 0, "udp 10.0.0.6:1000 > "+addr+":53"), drop.Martian)
		a.refused(0, parseLine(t, 0, "udp "+addr+":53 > 8.8.8.8:53"), drop.Martian, drop.AntiSpoof)
	}
	for _, addr := range []string{"10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.1", "192.168.255.255", "100.64.0.1", "100.127.255.255"} {
		if got := a.throwLine(1, "udp "+addr+":53 > 192.0.2.5:1000"); addr[:4] != "100." && got != "drop martian" {
			t.Errorf("private source %s from outside: %s", addr, got)
		}
	}
	for _, addr := range []string{"::", "::1", "fe80::1", "febf:ffff::1", "ff02::1", "ff0e::1", "::ffff:8.8.8.8"} {
		a.refused(1, parseLine(t, 1, "udp ["+addr+"]:53 > [2001:db8:1::5]:1000"), drop.Martian)
		a.refused(0, parseLine(t, 0, "udp [fd00::5]:1000 > ["+addr+"]:53"), drop.Martian)
		a.refused(0, parseLine(t, 0, "udp ["+addr+"]:1000 > [2001:4860::8]:53"), drop.Martian, drop.AntiSpoof)
	}
	for _, addr := range []string{"fc00::1", "fdff::1"} {
		a.refused(1, parseLine(t, 1, "udp ["+addr+"]:53 > [2001:db8:1::5]:1000"), drop.Martian)
	}
	a.rule(-1)
}

// M-19: ICMP errors that quote packets of every protocol, cut at every byte, of both families, 1:1
// and SNAT, both ways.
func TestM19QuotedPackets(t *testing.T) {
	a := newArena(t)
	for _, c := range []struct {
		port  int
		outer string // %x: the quote
		inner string // %d: its protocol
		at    int    // of the protocol in the quote
	}{
		{1, "icmp unreachable 1 7.7.7.7 > 192.0.2.5 hex:%x", "ip proto=47 192.0.2.5 > 8.8.8.8 len=60", 9},
		{1, "icmp time-exceeded 0 7.7.7.7 > 192.0.2.6 hex:%x", "ip proto=47 192.0.2.6 > 8.8.8.8 len=60", 9},
		{1, "icmp unreachable 4 7.7.7.7 > 192.0.2.5 hex:%x", "ip proto=47 192.0.2.5 > 8.8.8.8 ipopt=0101010101010101 len=52", 9},
		{1, "icmp6 unreachable 1 2001:4860::7 > 2001:db8:1::5 hex:%x", "ip proto=47 2001:db8:1::5 > 2001:4860::8 len=40", 6},
		{1, "icmp6 too-big 2001:4860::7 > 2001:db8:1::6 mtu=1280 hex:%x", "ip proto=47 2001:db8:1::6 > 2001:4860::8 len=40", 6},
		{0, "icmp unreachable 3 10.0.0.5 > 8.8.8.8 hex:%x", "ip proto=47 8.8.8.8 > 10.0.0.5 len=60", 9},
		{0, "icmp unreachable 3 10.0.0.6 > 8.8.8.8 hex:%x", "ip proto=47 8.8.8.8 > 10.0.0.6 len=60", 9},
		{0, "icmp6 unreachable 4 fd00::6 > 2001:4860::8 hex:%x", "ip proto=47 2001:4860::8 > fd00::6 len=40", 6},
	} {
		inner := parseLine(t, 0, c.inner)[14:]
		for proto := 0; proto < 256; proto += stride(8) {
			inner[c.at] = byte(proto)
			f := bytes.Clone(inner)
			if c.at == 9 {
				mend(append(ether(0, header.EtherTypeIPv4, nil), f...))
				f = append(ether(0, header.EtherTypeIPv4, nil), f...)
				mend(f)
				f = f[14:]
			}
			whole := parseLine(t, c.port, fmt.Sprintf(c.outer, f))
			head := len(whole) - len(f)
			for n := range min(len(f), 80) + 1 {
				cut := bytes.Clone(whole[:head+n])
				resum(cut)
				a.throw(c.port, cut)
			}
		}
		a.rule(-1)
	}
	a.rule(0)
}

// resum makes the lengths and checksums of a cut ICMP frame right.
func resum(f []byte) {
	sum := func(b []byte, start int) uint16 {
		for i := 0; i < len(b); i += 2 {
			start += int(b[i]) << 8
			if i+1 < len(b) {
				start += int(b[i+1])
			}
		}
		for start > 0xffff {
			start = start>>16 + start&0xffff
		}
		return ^uint16(start)
	}
	if f[12] == 0x08 {
		binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
		mend(f)
		f[36], f[37] = 0, 0
		binary.BigEndian.PutUint16(f[36:], sum(f[34:], 0))
		return
	}
	binary.BigEndian.PutUint16(f[18:], uint16(len(f)-54))
	f[56], f[57] = 0, 0
	pseudo := len(f) - 54 + header.ProtocolICMPv6
	for i := 22; i < 54; i += 2 {
		pseudo += int(f[i])<<8 + int(f[i+1])
	}
	binary.BigEndian.PutUint16(f[56:], sum(f[54:], pseudo))
}

// M-20: a million frames of random bytes, half of them behind headers that are right so far.
// TestMutations has a million that are nearly right.
func TestM20Random(t *testing.T) {
	frames := 1_000_000
	if testing.Short() {
		frames = 50_000
	}
	a := newArena(t)
	rnd := rand.New(rand.NewPCG(20, 20))
	heads := [2][][]byte{
		{parseLine(t, 0, "ip proto=1 10.0.0.5 > 8.8.8.8"), parseLine(t, 0, "ip proto=1 10.0.0.6 > 8.8.8.8"), parseLine(t, 0, "ip proto=60 fd00::5 > 2001:4860::8"), parseLine(t, 0, "ip proto=58 fd00::6 > 2001:4860::8")},
		{parseLine(t, 1, "ip proto=1 8.8.8.8 > 192.0.2.5"), parseLine(t, 1, "ip proto=1 8.8.8.8 > 192.0.2.6"), parseLine(t, 1, "ip proto=60 2001:4860::8 > 2001:db8:1::5"), parseLine(t, 1, "ip proto=58 2001:4860::8 > 2001:db8:1::6")},
	}
	var b Burst
	var data [MaxBurst][256]byte
	for n := 0; n < frames; n += MaxBurst {
		b.Port, b.N = rnd.IntN(2), MaxBurst
		for i := range b.N {
			f := data[i][:rnd.IntN(len(data[i])+1)]
			for j := 0; j < len(f); j += 8 {
				var word [8]byte
				binary.LittleEndian.PutUint64(word[:], rnd.Uint64()&rnd.Uint64()) // zeros are likelier to mean something
				copy(f[j:], word[:])
			}
			head := heads[b.Port][rnd.IntN(4)]
			switch {
			case rnd.IntN(8) == 0: // all of it
			case len(f) < len(head):
				copy(f, head[:12])
			default:
				copy(f, head)
				if head[12] == 0x08 {
					binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
					f[23] = []byte{1, 1, 6, 17, 17, byte(n)}[rnd.IntN(6)]
					mend(f)
				} else {
					binary.BigEndian.PutUint16(f[18:], uint16(len(f)-54))
					f[20] = []byte{0, 6, 17, 43, 44, 58, 60, byte(n)}[rnd.IntN(8)]
				}
			}
			b.Packets[i].Data, b.Packets[i].Handle = f, uintptr(i+1)
		}
		a.after(time.Millisecond)
		a.watch.check(t, a.rig, &b)
		a.Release()
		a.drain()
		a.Expire(64)
		if n%(32*1000) == 0 {
			a.rule(-1)
		}
	}
	a.rule(-1)
	var kinds int
	for _, n := range a.counters.Dropped {
		if n > 0 {
			kinds++
		}
	}
	if c := a.counters; c.Forwarded < uint64(frames/100) || kinds < 12 {
		t.Errorf("of %d frames %d were forwarded, and %d reasons found: the property says little", frames, c.Forwarded, kinds)
	}
}
