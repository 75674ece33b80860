// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/header"
	"weir/pipeline/packettext"
	"weir/pipeline/session"
)

// icmpError says how to build an error. Its bytes are put together here, not by the code under
// test.
type icmpError struct {
	from, to  netip.Addr
	typ, code byte
	rest      uint32
	quote     []byte // of the quoted packet
	behind    []byte // RFC 4884: what stands behind it
	wrong     bool   // the checksum
}

// frame builds the error for a port.
func (e icmpError) frame(port int) []byte {
	m := binary.BigEndian.AppendUint32([]byte{e.typ, e.code, 0, 0}, e.rest)
	m = append(append(m, e.quote...), e.behind...)
	b := []byte{2, 0, 0, 0, 0, byte(1 + port), 2, 0, 0, 0, 1, 9}
	sum := uint16(0)
	if e.from.Is4() {
		sum = onesComplement(m)
		ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 61, 1, 0, 0}
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(m)))
		ip = append(append(ip, e.from.AsSlice()...), e.to.AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], ^onesComplement(ip))
		b = append(append(b, 8, 0), ip...)
	} else {
		sum = slowSum(e.from, e.to, header.ProtocolICMPv6, m)
		ip := []byte{0x60, 0, 0, 0, 0, 0, 58, 61}
		binary.BigEndian.PutUint16(ip[4:], uint16(len(m)))
		b = append(append(append(append(b, 0x86, 0xdd), ip...), e.from.AsSlice()...), e.to.AsSlice()...)
	}
	binary.BigEndian.PutUint16(m[2:], ^sum)
	if e.wrong {
		m[2] ^= 0x40
	}
	return append(b, m...)
}

// onesComplement is the one's complement sum of b, a word at a time.
func onesComplement(b []byte) uint16 {
	sum := 0
	for i, c := range b {
		if i%2 == 0 {
			sum += int(c) << 8
		} else {
			sum += int(c)
		}
		if sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}

// errorTypes are the errors that are translated, by family.
var errorTypes = [2][]byte{{3, 11, 12}, {1, 2, 3, 4}}

// sixth is 1 for IPv6.
func sixth(six bool) int {
	if six {
		return 1
	}
	return 0
}

// hop is the packet of a frame behind one more router: with one less TTL.
func hop(frame []byte) []byte {
	b := bytes.Clone(frame[header.EthernetSize:])
	if b[0]>>4 == 6 {
		b[7]--
		return b
	}
	b[8]--
	binary.BigEndian.PutUint16(b[10:], header.Delta(0).Replace16(0x0100, 0).Apply(binary.BigEndian.Uint16(b[10:])))
	return b
}

func addresses(frame []byte) (src, dst netip.Addr) {
	if frame[12] == 0x86 {
		ip := header.IPv6(frame[header.EthernetSize:])
		return ip.Src(), ip.Dst()
	}
	ip := header.IPv4(frame[header.EthernetSize:])
	return ip.Src(), ip.Dst()
}

// checkErrors holds, for a flow, that an error about its packet comes to who sent the packet, about
// the very packet that was sent, both ways; that all checksums which are quoted as a whole are
// right; and that it leaves no trace in the session.
func checkErrors(t testing.TB, r *rig, s sample, typ, code byte, size int, extended bool) {
	t.Helper()
	kind := sampleKinds[s.kind]
	if s.shared && s.kind > 2 || kind == "gre" && !s.six && len(s.payload) == 0 {
		return
	}
	sent := s.frame(t)
	_, sum := s.parts(sent)
	switch {
	case kind == "gre" || kind == "sctp" || s.sum == sumRight:
	case s.sum == sumNone && kind == "udp" && !s.six:
		sent[sum], sent[sum+1] = 0, 0
	case s.sum == sumZero && len(s.payload) > 1:
		s.move(sent, binary.BigEndian.Uint16(sent[sum:]))
	case s.sum == sumWrong:
		sent[sum] ^= 0x55
		if sent[sum]|sent[sum+1] == 0 || sent[sum]&sent[sum+1] == 0xff { // the two zeros are told apart by nobody
			return
		}
	}
	pass := func(port int, frame []byte) []byte {
		t.Helper()
		got := r.process(port, bytes.Clone(frame))[0]
		if got.port != 1-port {
			t.Fatalf("did not pass: %s: %v", packettext.Format(frame), r.counters.Dropped)
		}
		return got.frame
	}
	left := bytes.Clone(pass(0, sent))
	private, remote := addresses(sent)
	external, _ := addresses(left)
	answer := s.mirror(left)
	copy(answer, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 1, 9})
	came := bytes.Clone(pass(1, answer))
	live := r.only()
	state := *live

	router := netip.MustParseAddr("9.9.9.9")
	if s.six {
		router = netip.MustParseAddr("2a00::9")
	}
	for _, e := range []struct {
		port      int
		icmpError        // as it comes
		want      []byte // the packet that it has to be about
		from, to  netip.Addr
	}{
		{1, icmpError{from: router, to: external, quote: left[header.EthernetSize:]}, named(hop(sent), left[header.EthernetSize:]), router, private},
		{0, icmpError{from: private, to: remote, quote: came[header.EthernetSize:]}, hop(answer), external, remote},
	} {
		e.typ, e.code, e.rest = typ, code, 0x0000_0578
		n := min(size, len(e.quote))
		cut := n < len(e.quote)
		e.quote = bytes.Clone(e.quote[:n])
		want := bytes.Clone(e.want[:n])
		if extended {
			pad := -n & 127
			if n == 0 {
				pad = 128
			}
			e.quote, want = append(e.quote, make([]byte, pad)...), append(want, make([]byte, pad)...)
			e.behind = []byte{0x20, 0, 0xdc, 0xf2, 0, 8, 1, 1, 0, 1, 2, 3} // with a right checksum
			if s.six {
				e.rest = uint32(len(want)/8) << 24
			} else {
				e.rest = uint32(len(want)/4) << 16
			}
		}
		in := e.frame(e.port)
		out := pass(e.port, in)
		if err := packettext.Verify(out); err != nil && (s.sum == sumRight || s.sum == sumNone) && !(cut && extended) { // padding looks like data
			t.Fatalf("in  %s\nout %s\n%v", packettext.Format(in), packettext.Format(out), err)
		}
		wanted := icmpError{from: e.from, to: e.to, typ: typ, code: code, rest: e.rest, quote: want, behind: e.behind}.frame(e.port)
		wanted = append(bytes.Clone(out[:header.EthernetSize]), named(hop(wanted), out[header.EthernetSize:])...)
		if s.sum == sumZero && !bytes.Equal(out, wanted) { // a checksum of 0 may have come back as its other form
			continue
		}
		if !bytes.Equal(out, wanted) {
			t.Fatalf("an error of type %d about %d bytes\nin   %s\nout  %s\nwant %s", typ, n, packettext.Format(in), packettext.Format(out), packettext.Format(wanted))
		}
	}
	if *live != state || r.sessions.Len() != 1 {
		t.Fatalf("an error about %s changed its session\nfrom %+v\nto   %+v", packettext.Format(sent), state, *live)
	}
}

// named gives an IPv4 packet the identification of another: SNAT chooses it, and a quote has what
// was chosen.
func named(ip, as []byte) []byte {
	if ip[0]>>4 == 4 {
		copy(ip[4:6], as[4:6])
		header.IPv4(ip).UpdateChecksum()
	}
	return ip
}

func TestErrorsAreAboutWhatWasSent(t *testing.T) {
	rounds := 10000
	if testing.Short() {
		rounds = 2000
	}
	g := rand.New(rand.NewPCG(5508, 4884))
	r := newRig(t, unclampedConfig, config.MAC{}) // a clamped MSS is what the path saw, and stays in the quote
	for range rounds {
		s := sample{kind: uint8(g.IntN(len(sampleKinds))), six: g.IntN(2) == 0, shared: g.IntN(2) == 0, extra: uint8(g.IntN(4)),
			sport: uint16(1 + g.IntN(65535)), dport: uint16(1 + g.IntN(65535)), sum: uint8(g.IntN(sumZero2))}
		s.payload = make([]byte, g.IntN(900))
		for i := range s.payload {
			s.payload[i] = byte(g.Uint32())
		}
		typ := errorTypes[sixth(s.six)][g.IntN(3+sixth(s.six))]
		transport, _ := s.parts(s.frame(t))
		size := transport - header.EthernetSize + []int{8, 12, 16, 18, 20, 28, 100, 528, 548, 4000}[g.IntN(10)]
		// Behind a shorter quote nobody knows where the padding to 128 bytes begins.
		extended := g.IntN(3) == 0 && (typ != 2 && typ != 4 || !s.six) && size >= transport-header.EthernetSize+20
		checkErrors(t, r, s, typ, byte(g.IntN(16)), size, extended)
		r.forget()
	}
}

// Every ICMP type about a live flow: the errors pass, the rest of what quotes does not, and the
// flow goes on as if nothing had been.
func TestEveryTypeAboutALiveFlow(t *testing.T) {
	for _, six := range []bool{false, true} {
		for _, shared := range []bool{false, true} {
			r := newRig(t, rigConfig, config.MAC{})
			s := sample{kind: 1, six: six, shared: shared, sport: 4000, dport: 4500, payload: []byte("question")}
			sent := s.frame(t)
			left := bytes.Clone(r.process(0, bytes.Clone(sent))[0].frame)
			answer := s.mirror(left)
			copy(answer, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 1, 9})
			came := bytes.Clone(r.process(1, bytes.Clone(answer))[0].frame)
			private, remote := addresses(sent)
			external, _ := addresses(left)
			live := r.only()
			state := *live
			for typ := range 256 {
				for code := range 256 {
					if code > 20 && (typ > 20 || testing.Short()) && code != typ {
						continue
					}
					for _, e := range []struct {
						port int
						icmpError
					}{
						{1, icmpError{from: remote, to: external, quote: left[header.EthernetSize:]}},
						{0, icmpError{from: private, to: remote, quote: came[header.EthernetSize:]}},
					} {
						e.typ, e.code = byte(typ), byte(code)
						if slices.Contains([][]int{{0, 8, 13, 14}, {128, 129}}[sixth(six)], typ) { // a query is a flow of its own
							continue
						}
						frame := e.frame(e.port)
						in := packettext.Format(frame)
						r.after(time.Microsecond * 1500) // a refreshed session would show it
						got := r.frameFate(e.port, frame)
						want := "drop icmp_unsupported"
						if slices.Contains(errorTypes[sixth(six)], byte(typ)) {
							want = "quote("
						}
						if !strings.Contains(got, want) {
							t.Fatalf("%s into port %d: %s, want %s", in, e.port, got, want)
						}
						if *live != state || r.sessions.Len() != 1 {
							t.Fatalf("%s changed the session\nfrom %+v\nto   %+v", in, state, *live)
						}
					}
				}
			}
			if f := r.process(1, answer)[0]; f.port != 0 || !bytes.Equal(f.frame[header.EthernetSize:], came[header.EthernetSize:]) {
				t.Errorf("the flow's next packet: %s", packettext.Format(f.frame))
			}
		}
	}
}

// A quote of any protocol, cut at any byte: nothing is read or written beyond the packet, and what
// passes is right. The buffer ends where the packet does, so that the runtime watches over the
// first.
func TestQuotesCutAnywhere(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	g := rand.New(rand.NewPCG(19, 19))
	passed, frames := 0, 0
	for _, six := range []bool{false, true} {
		local, private, remote := netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("8.8.8.8")
		if six {
			local, private, remote = netip.MustParseAddr("2001:db8:1::5"), netip.MustParseAddr("fd00::5"), netip.MustParseAddr("2001:4860::8")
		}
		for _, port := range []int{0, 1} {
			from, to := remote, local
			e := icmpError{from: remote, to: local, typ: 3}
			if port == 0 {
				from, to = private, remote
				e = icmpError{from: private, to: remote, typ: 3}
			}
			// The quoted packet went the other way, and its transport looks like anything.
			whole := make([]byte, 128)
			for proto := range 256 {
				for i := range whole {
					whole[i] = byte(g.Uint32())
				}
				if six {
					copy(whole, []byte{0x60, 0, 0, 0, 0, 88, byte(proto), 9})
					copy(whole[8:], to.AsSlice())
					copy(whole[24:], from.AsSlice())
					whole[40], whole[41] = 17, byte(g.IntN(3)) // what extension headers say
				} else {
					copy(whole, []byte{0x45, 0, 0, 128, 0, 0, 0, 0, 9, byte(proto), 0, 0})
					copy(whole[12:], to.AsSlice())
					copy(whole[16:], from.AsSlice())
					binary.BigEndian.PutUint16(whole[10:], ^onesComplement(whole[:20]))
				}
				for n := range 129 {
					e.quote = whole[:n]
					b := slices.Clip(e.frame(port))
					was := bytes.Clone(b)
					var burst Burst
					burst.Port, burst.N = port, 1
					burst.Packets[0].Data = b
					r.Process(&burst)
					frames++
					if q := &r.Out[1-port]; q.N > 0 {
						passed++
						// The error's own checksum, the quoted header's, and nothing behind the
						// transport's checksum.
						icmp := header.EthernetSize + 20 + 20*sixth(six)
						src, dst := addresses(b)
						sum := onesComplement(b[icmp:])
						if six {
							sum = slowSum(src, dst, header.ProtocolICMPv6, b[icmp:])
						} else if onesComplement(b[icmp+8:icmp+28]) != 0xffff {
							t.Fatalf("quoted header checksum of %x", b)
						}
						if sum != 0xffff || !bytes.Equal(b[min(len(b), icmp+8+40+20*sixth(six)+24):], was[min(len(was), icmp+8+40+20*sixth(six)+24):]) {
							t.Fatalf("in  %x\nout %x", was, b)
						}
						if bytes.Contains(b[header.EthernetSize:icmp+8+20+20*sixth(six)], private.AsSlice()) == (port == 0) {
							t.Fatalf("the private address is on the wrong side: %x", b)
						}
					}
					r.drain()
				}
			}
		}
	}
	r.balanced()
	if t.Log(frames, passed); passed < frames/4 || passed > frames*9/10 {
		t.Errorf("%d of %d passed: the property says nothing about the others", passed, frames)
	}
}

// Who is told, by what is quoted, when there is no session.
func TestErrorsWithoutSession(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	for _, c := range []struct {
		port       int
		line, want string
	}{
		{1, "icmp unreachable 4 9.9.9.9 > 192.0.2.5 mtu=1300 quote(tcp 192.0.2.5:443 > 8.8.8.8:5 ACK)", "icmp unreachable 4 9.9.9.9 > 10.0.0.5 mtu=1300 quote(tcp 10.0.0.5:443 > 8.8.8.8:5 ACK)"},
		{1, "icmp unreachable 1 9.9.9.9 > 192.0.2.30 quote(udp 192.0.2.30:4 > 8.8.8.8:5)", "icmp unreachable 1 9.9.9.9 > 10.0.0.8 quote(udp 10.0.0.8:4 > 8.8.8.8:5)"},
		{1, "icmp unreachable 2 9.9.9.9 > 192.0.2.5 quote(ip proto=47 192.0.2.5 > 8.8.8.8 len=8)", "icmp unreachable 2 9.9.9.9 > 10.0.0.5 quote(ip proto=47 10.0.0.5 > 8.8.8.8 len=8)"},
		{1, "icmp unreachable 2 9.9.9.9 > 192.0.2.5 quote(ip proto=47 192.0.2.5 > 8.8.8.8)", "icmp unreachable 2 9.9.9.9 > 10.0.0.5 quote(ip proto=47 10.0.0.5 > 8.8.8.8)"},
		{1, "icmp unreachable 1 9.9.9.9 > 192.0.2.5 quote(udp 192.0.2.30:4 > 8.8.8.8:5)", "drop icmp_unrelated"}, // about another's packet
		{1, "icmp unreachable 1 9.9.9.9 > 192.0.2.5 quote(udp 8.8.8.8:5 > 192.0.2.5:4)", "drop icmp_unrelated"},  // about one that came
		{1, "icmp unreachable 1 9.9.9.9 > 192.0.2.6 quote(udp 192.0.2.6:2000 > 8.8.8.8:5)", "drop icmp_unrelated"},
		{1, "icmp unreachable 2 9.9.9.9 > 192.0.2.6 quote(ip proto=47 192.0.2.6 > 8.8.8.8 len=8)", "drop icmp_unrelated"},
		{1, "icmp unreachable 1 9.9.9.9 > 192.0.2.5 ttl=1 quote(udp 192.0.2.5:4 > 8.8.8.8:5)", "drop ttl_exceeded"},
		{1, "icmp unreachable 1 10.1.1.1 > 192.0.2.5 quote(udp 192.0.2.5:4 > 8.8.8.8:5)", "icmp unreachable 1 10.1.1.1 > 10.0.0.5 quote(udp 10.0.0.5:4 > 8.8.8.8:5)"},
		{1, "icmp unreachable 1 10.1.1.1 > 192.0.2.5 quote(udp 192.0.2.4:4 > 8.8.8.8:5)", "drop martian"},
		{1, "icmp unreachable 1 127.1.1.1 > 192.0.2.5 quote(udp 192.0.2.5:4 > 8.8.8.8:5)", "drop martian"},
		{1, "icmp unreachable 1 192.0.2.30 > 192.0.2.5 quote(udp 192.0.2.5:4 > 8.8.8.8:5)", "drop own_source"},
		{1, "icmp unreachable 1 9.9.9.9 > 203.0.113.17 quote(udp 203.0.113.17:4 > 8.8.8.8:5)", "icmp unreachable 1 9.9.9.9 > 203.0.113.17 quote(udp 203.0.113.17:4 > 8.8.8.8:5)"},
		{1, "icmp 4/0 9.9.9.9 > 203.0.113.17 sum=bad", "icmp 4/0 9.9.9.9 > 203.0.113.17 sum=bad"},                                                                                                 // untranslated, unread
		{1, "icmp unreachable 1 9.9.9.9 > 192.0.2.5 rest=0x00ff0000 quote(udp 192.0.2.5:4 > 8.8.8.8:5)", "icmp unreachable 1 9.9.9.9 > 10.0.0.5 rest=16711680 quote(udp 10.0.0.5:4 > 8.8.8.8:5)"}, // an RFC 4884 length that lies
		{0, "icmp unreachable 3 10.0.0.5 > 8.8.8.8 quote(udp 8.8.8.8:5 > 10.0.0.5:4)", "icmp unreachable 3 192.0.2.5 > 8.8.8.8 quote(udp 8.8.8.8:5 > 192.0.2.5:4)"},
		{0, "icmp unreachable 3 10.0.0.8 > 8.8.8.8 quote(udp 8.8.8.8:5 > 10.0.0.8:4)", "icmp unreachable 3 192.0.2.30 > 8.8.8.8 quote(udp 8.8.8.8:5 > 192.0.2.30:4)"},
		{0, "icmp unreachable 3 10.0.0.6 > 8.8.8.8 quote(udp 8.8.8.8:5 > 10.0.0.6:4)", "drop icmp_unrelated"},
		{0, "icmp unreachable 3 10.0.0.9 > 8.8.8.8 quote(udp 8.8.8.8:5 > 10.0.0.9:4)", "drop no_eligible_address"},
		{0, "icmp unreachable 3 10.0.0.5 > 100.64.0.1 quote(udp 100.64.0.1:5 > 10.0.0.5:4)", "drop route_drop"},
		{0, "icmp unreachable 3 10.0.0.5 > 9.9.9.9 quote(udp 8.8.8.8:5 > 10.0.0.5:4)", "drop icmp_unrelated"}, // to another than who sent
		{0, "icmp unreachable 3 10.0.0.5 > 8.8.8.8 quote(udp 8.8.8.8:5 > 10.0.0.8:4)", "drop icmp_unrelated"}, // about what another got
		{0, "icmp unreachable 3 10.9.0.3 > 8.8.8.8 quote(udp 8.8.8.8:5 > 10.9.0.3:4)", "drop public_source"},
		{0, "icmp unreachable 3 10.0.0.77 > 8.8.8.8 quote(udp 8.8.8.8:5 > 10.0.0.77:4)", "drop antispoof"},
		// An instance that is the router of an attached prefix speaks of its packets, which weir
		// did not translate.
		{0, "icmp time-exceeded 0 10.0.0.5 > 8.8.8.8 quote(udp 8.8.8.8:5 > 203.0.113.17:4)", "icmp time-exceeded 0 192.0.2.5 > 8.8.8.8 quote(udp 8.8.8.8:5 > 203.0.113.17:4)"},
		{0, "icmp time-exceeded 0 10.0.0.8 > 8.8.8.8 quote(udp 8.8.8.8:5 > 203.0.113.17:4)", "drop icmp_unrelated"}, // another's prefix
		{0, "icmp6 too-big fd00::5 > 2001:4860::8 mtu=1280 quote(udp [2001:4860::8]:5 > [2001:db8:2::9]:4)", "icmp6 too-big 2001:db8:1::5 > 2001:4860::8 mtu=1280 quote(udp [2001:4860::8]:5 > [2001:db8:2::9]:4)"},
		// Within the VPC, and from an attached prefix, they pass unread.
		{0, "icmp unreachable 3 10.0.0.5 > 10.0.0.6 sum=bad quote(udp 10.0.0.6:5 > 10.0.0.5:4)", "icmp unreachable 3 10.0.0.5 > 10.0.0.6 sum=bad quote(udp 10.0.0.6:5 > 10.0.0.5:4)"},
		{0, "icmp unreachable 3 203.0.113.17 > 8.8.8.8 quote(udp 8.8.8.8:5 > 203.0.113.17:4)", "icmp unreachable 3 203.0.113.17 > 8.8.8.8 quote(udp 8.8.8.8:5 > 203.0.113.17:4)"},
	} {
		r.expect(c.port, c.line, c.want)
	}
	if r.sessions.Len() != 0 {
		t.Errorf("%d sessions began with errors", r.sessions.Len())
	}
}

// With several floating addresses an error from inside leaves by that which the remote knows: the
// session's, or, when the packet came without making one, the address that it came to.
func TestErrorsFromSeveralAddresses(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	stateless := 0
	for port := range 64 {
		for _, external := range []string{"192.0.2.20", "192.0.2.21", "192.0.2.22"} {
			r.expect(1, fmt.Sprintf("udp 8.8.8.8:%d > %s:53", 1000+port, external), fmt.Sprintf("udp 8.8.8.8:%d > 10.0.0.7:53", 1000+port))
			if r.sessions.Len() == 0 {
				stateless++
			}
			r.expect(0, fmt.Sprintf("icmp unreachable 3 10.0.0.7 > 8.8.8.8 quote(udp 8.8.8.8:%d > 10.0.0.7:53)", 1000+port),
				fmt.Sprintf("icmp unreachable 3 %s > 8.8.8.8 quote(udp 8.8.8.8:%d > %s:53)", external, 1000+port, external))
			if r.sessions.Len() == 1 && r.only().State() != session.Unconfirmed {
				t.Fatal("an error confirmed the session")
			}
			r.forget()
		}
	}
	if stateless != 64 {
		t.Errorf("%d of 64 flows needed no session; expected one address of three each", stateless)
	}
}

// A session's address is kept over a change of pools: its errors go by it too, both ways.
func TestErrorsKeepTheSessionsAddress(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	r.expect(0, "udp 10.0.0.8:4 > 8.8.8.8:5", "udp 192.0.2.30:4 > 8.8.8.8:5")
	moved := strings.Replace(rigConfig, "{ephemeral: [192.0.2.30]}", "{ephemeral: [192.0.2.30], floating: [192.0.2.31]}", 1)
	r.reload(moved)
	r.expect(0, "icmp unreachable 3 10.0.0.8 > 8.8.8.8 quote(udp 8.8.8.8:5 > 10.0.0.8:4)", "icmp unreachable 3 192.0.2.30 > 8.8.8.8 quote(udp 8.8.8.8:5 > 192.0.2.30:4)")
	r.expect(0, "icmp unreachable 3 10.0.0.8 > 8.8.8.8 quote(udp 8.8.8.8:6 > 10.0.0.8:4)", "icmp unreachable 3 192.0.2.31 > 8.8.8.8 quote(udp 8.8.8.8:6 > 192.0.2.31:4)")
	r.expect(1, "icmp unreachable 3 8.8.8.8 > 192.0.2.30 quote(udp 192.0.2.30:4 > 8.8.8.8:5)", "icmp unreachable 3 8.8.8.8 > 10.0.0.8 quote(udp 10.0.0.8:4 > 8.8.8.8:5)")
	r.reload(strings.Replace(moved, "{ephemeral: [192.0.2.30], floating", "{floating", 1))
	r.expect(1, "icmp unreachable 3 8.8.8.8 > 192.0.2.30 quote(udp 192.0.2.30:4 > 8.8.8.8:5)", "drop unknown_destination")
	r.expect(0, "icmp unreachable 3 10.0.0.8 > 8.8.8.8 quote(udp 8.8.8.8:5 > 10.0.0.8:4)", "icmp unreachable 3 192.0.2.31 > 8.8.8.8 quote(udp 8.8.8.8:5 > 192.0.2.31:4)")
}

// The worker that owns a flow is named by what an error quotes, whoever sent it.
func TestRemoteOwner(t *testing.T) {
	for _, c := range []struct {
		inside     bool
		line, want string
	}{
		{false, "icmp time-exceeded 0 9.9.9.9 > 192.0.2.5 quote(udp 192.0.2.5:4 > 8.8.8.8:5)", "8.8.8.8"},
		{true, "icmp unreachable 3 10.0.0.5 > 8.8.4.4 quote(udp 8.8.8.8:5 > 10.0.0.5:4)", "8.8.8.8"},
		{false, "icmp time-exceeded 0 9.9.9.9 > 192.0.2.5 sum=bad quote(udp 192.0.2.5:4 > 8.8.8.8:5)", "9.9.9.9"},
		{false, "icmp echo-reply 9.9.9.9 > 192.0.2.5 id=3", "9.9.9.9"},
		{true, "udp 10.0.0.5:4 > 8.8.8.8:5", "8.8.8.8"},
	} {
		p := &Packet{Data: parseLine(t, 1, c.line)}
		if v := p.parse4(c.inside); v != goesOn {
			t.Fatalf("%s: %v", c.line, v.reason())
		}
		if got := p.remoteOwner().Netip().String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.line, got, c.want)
		}
	}
}

// With several workers an error finds its session whichever of them receives it, and whichever
// router sent it; hairpinned too.
func TestErrorsAmongWorkers(t *testing.T) {
	c := newCrew(t, 3, rigConfig)
	for i := range 60 {
		remote, router := fmt.Sprintf("8.8.%d.%d", i%7, i%5+1), fmt.Sprintf("9.9.%d.9", i)
		left := c.send(i%3, 0, fmt.Sprintf("udp 10.0.0.6:%d > %s:53", 1000+i, remote))
		var external int
		if _, err := fmt.Sscanf(left, "1 > udp 192.0.2.6:%d > ", &external); err != nil {
			t.Fatalf("%q: %v", left, err)
		}
		for w := range 3 {
			got := c.send(w, 1, fmt.Sprintf("icmp time-exceeded 0 %s > 192.0.2.6 quote(udp 192.0.2.6:%d > %s:53)", router, external, remote))
			if want := fmt.Sprintf("0 > icmp time-exceeded 0 %s > 10.0.0.6 quote(udp 10.0.0.6:%d > %s:53)", router, 1000+i, remote); got != want {
				t.Fatalf("worker %d: %s, want %s", w, got, want)
			}
			got = c.send(w, 0, fmt.Sprintf("icmp unreachable 3 10.0.0.6 > %s quote(udp %s:53 > 10.0.0.6:%d)", remote, remote, 1000+i))
			if want := fmt.Sprintf("1 > icmp unreachable 3 192.0.2.6 > %s quote(udp %s:53 > 192.0.2.6:%d)", remote, remote, external); got != want {
				t.Fatalf("worker %d: %s, want %s", w, got, want)
			}
		}
		left = c.send(i%3, 0, fmt.Sprintf("udp 10.0.0.6:%d > 192.0.2.5:53", 1000+i))
		if want := fmt.Sprintf("0 > udp 192.0.2.6:%d > 10.0.0.5:53", external); left != want {
			t.Fatalf("%s, want %s", left, want)
		}
		for w := range 3 {
			got := c.send(w, 0, fmt.Sprintf("icmp unreachable 3 10.0.0.5 > 192.0.2.6 quote(udp 192.0.2.6:%d > 10.0.0.5:53)", external))
			if want := fmt.Sprintf("0 > icmp unreachable 3 192.0.2.5 > 10.0.0.6 quote(udp 10.0.0.6:%d > 192.0.2.5:53)", 1000+i); got != want {
				t.Fatalf("worker %d: %s, want %s", w, got, want)
			}
		}
	}
	c.owned()
}
