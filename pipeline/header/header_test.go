// SPDX-License-Identifier: Apache-2.0

package header_test

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"weir/pipeline/header"
	"weir/pipeline/packettext"
)

const ether = "02:00:00:00:00:05 > 02:00:00:00:00:01 "

// frame parses a line, with Ethernet addresses before it.
func frame(t testing.TB, body string) []byte {
	t.Helper()
	b, err := packettext.Parse(ether + body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ipv4(t testing.TB, body string) header.IPv4 {
	t.Helper()
	ip, ok := header.ParseIPv4(frame(t, body)[header.EthernetSize:])
	if !ok {
		t.Fatalf("ParseIPv4 refuses %s", body)
	}
	return ip
}

func ipv6(t testing.TB, body string) header.IPv6 {
	t.Helper()
	ip, ok := header.ParseIPv6(frame(t, body)[header.EthernetSize:])
	if !ok {
		t.Fatalf("ParseIPv6 refuses %s", body)
	}
	return ip
}

func TestGetters(t *testing.T) {
	check := func(name string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	b := frame(t, `tcp 172.30.0.5:40000 > 8.8.8.8:80 SYN,ACK seq=4000000000 ack=7 win=512 urg=9 mss=1460 ttl=3 tos=184 ipid=513 df `+
		`ipopt=94040000 sum=0x1234 ipsum=0x5678 "hello" pad=3`)
	e, ok := header.ParseEthernet(b)
	check("Ethernet", ok, true)
	check("Src", e.Src().String(), "02:00:00:00:00:05")
	check("Dst", e.Dst().String(), "02:00:00:00:00:01")
	check("Type", e.Type(), uint16(header.EtherTypeIPv4))
	ip, ok := header.ParseIPv4(e.Payload())
	check("IPv4", ok, true)
	check("length", len(ip), len(b)-14-3)
	check("TotalLength", int(ip.TotalLength()), len(ip))
	check("HeaderLength", ip.HeaderLength(), 24)
	check("Options", hex.EncodeToString(ip.Options()), "94040000")
	check("TOS", ip.TOS(), uint8(184))
	check("ID", ip.ID(), uint16(513))
	check("DontFragment", ip.DontFragment(), true)
	check("MoreFragments", ip.MoreFragments(), false)
	check("FragmentOffset", ip.FragmentOffset(), 0)
	check("IsFragment", ip.IsFragment(), false)
	check("TTL", ip.TTL(), uint8(3))
	check("Protocol", ip.Protocol(), uint8(header.ProtocolTCP))
	check("Checksum", ip.Checksum(), uint16(0x5678))
	check("Src", ip.Src(), netip.MustParseAddr("172.30.0.5"))
	check("Dst", ip.Dst(), netip.MustParseAddr("8.8.8.8"))
	tcp, ok := header.ParseTCP(ip.Payload())
	check("TCP", ok, true)
	check("SrcPort", tcp.SrcPort(), uint16(40000))
	check("DstPort", tcp.DstPort(), uint16(80))
	check("Seq", tcp.Seq(), uint32(4000000000))
	check("Ack", tcp.Ack(), uint32(7))
	check("HeaderLength", tcp.HeaderLength(), 24)
	check("Flags", tcp.Flags(), uint8(header.TCPSyn|header.TCPAck))
	check("Window", tcp.Window(), uint16(512))
	check("Checksum", tcp.Checksum(), uint16(0x1234))
	check("Urgent", tcp.Urgent(), uint16(9))
	check("Options", hex.EncodeToString(tcp.Options()), "020405b4")
	check("Payload", string(tcp.Payload()), "hello")

	later := ipv4(t, `ip proto=17 172.30.0.5 > 8.8.8.8 frag=7:1480:more len=8`)
	check("FragmentOffset", later.FragmentOffset(), 1480)
	check("MoreFragments", later.MoreFragments(), true)
	check("IsFragment", later.IsFragment(), true)
	check("IsFragment", ipv4(t, `ip proto=17 172.30.0.5 > 8.8.8.8 frag=7:1480 len=8`).IsFragment(), true)

	six := ipv6(t, `udp [fd00:1::5]:40000 > [2001:db8::8]:53 ttl=3 tos=171 flow=703710 sum=0x1234 "hello"`)
	check("TrafficClass", six.TrafficClass(), uint8(171))
	check("FlowLabel", six.FlowLabel(), uint32(703710))
	check("PayloadLength", six.PayloadLength(), uint16(13))
	check("NextHeader", six.NextHeader(), uint8(header.ProtocolUDP))
	check("HopLimit", six.HopLimit(), uint8(3))
	check("Src", six.Src(), netip.MustParseAddr("fd00:1::5"))
	check("Dst", six.Dst(), netip.MustParseAddr("2001:db8::8"))
	udp, ok := header.ParseUDP(six.Payload())
	check("UDP", ok, true)
	check("SrcPort", udp.SrcPort(), uint16(40000))
	check("DstPort", udp.DstPort(), uint16(53))
	check("Length", udp.Length(), uint16(13))
	check("Checksum", udp.Checksum(), uint16(0x1234))
	check("Payload", string(udp.Payload()), "hello")

	m4, _ := header.ParseICMPv4(ipv4(t, `icmp unreachable 4 1.2.3.4 > 5.6.7.8 mtu=1400 quote(udp 5.6.7.8:1 > 9.9.9.9:2)`).Payload())
	check("Type", m4.Type(), uint8(header.ICMPv4Unreachable))
	check("Code", m4.Code(), uint8(4))
	check("MTU", m4.MTU(), uint16(1400))
	check("IsError", m4.IsError(), true)
	check("ChecksumOK", m4.ChecksumOK(), true)
	m4, _ = header.ParseICMPv4(ipv4(t, `icmp echo-reply 1.2.3.4 > 5.6.7.8 id=7 seq=9 sum=0x1234`).Payload())
	check("ID", m4.ID(), uint16(7))
	check("Sequence", m4.Sequence(), uint16(9))
	check("Checksum", m4.Checksum(), uint16(0x1234))
	check("IsError", m4.IsError(), false)
	check("ChecksumOK", m4.ChecksumOK(), false)
	six = ipv6(t, `icmp6 too-big fd00::1 > fd00::2 mtu=1400 hex:00`)
	m6, _ := header.ParseICMPv6(six.Payload())
	check("Type", m6.Type(), uint8(header.ICMPv6PacketTooBig))
	check("MTU", m6.MTU(), uint32(1400))
	check("IsError", m6.IsError(), true)
	check("ChecksumOK", m6.ChecksumOK(six.PseudoHeader(header.ProtocolICMPv6, header.IPv6Size)), true)
	m6, _ = header.ParseICMPv6(ipv6(t, `icmp6 echo-request fd00::1 > fd00::2 id=7 seq=9`).Payload())
	check("ID", m6.ID(), uint16(7))
	check("Sequence", m6.Sequence(), uint16(9))
	check("Code", m6.Code(), uint8(0))
	check("IsError", m6.IsError(), false)

	arp, ok := header.ParseARP(frame(t, `arp who-has 198.51.100.1 tell 198.51.100.2 tha=02:00:00:00:00:09`)[14:])
	check("ARP", ok, true)
	check("Operation", arp.Operation(), uint16(header.ARPRequest))
	check("SenderMAC", arp.SenderMAC(), header.MAC{2, 0, 0, 0, 0, 5})
	check("Sender", arp.Sender(), netip.MustParseAddr("198.51.100.2"))
	check("TargetMAC", arp.TargetMAC(), header.MAC{2, 0, 0, 0, 0, 9})
	check("Target", arp.Target(), netip.MustParseAddr("198.51.100.1"))
}

// TestSetters writes each field into all ones: only its own bits change, and the line says so.
func TestSetters(t *testing.T) {
	addr4, addr6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		name string
		set  func(b []byte)
		want string // of the bytes, until all that follow are ff
	}{
		{"Ethernet.SetDst", func(b []byte) { header.Ethernet(b).SetDst(header.MAC{1, 2, 3, 4, 5, 6}) }, "010203040506"},
		{"Ethernet.SetSrc", func(b []byte) { header.Ethernet(b).SetSrc(header.MAC{1, 2, 3, 4, 5, 6}) }, "ffffffffffff010203040506"},
		{"Ethernet.SetType", func(b []byte) { header.Ethernet(b).SetType(0x0800) }, "ffffffffffffffffffffffff0800"},
		{"IPv4.SetTOS", func(b []byte) { header.IPv4(b).SetTOS(1) }, "ff01"},
		{"IPv4.SetTotalLength", func(b []byte) { header.IPv4(b).SetTotalLength(0x0102) }, "ffff0102"},
		{"IPv4.SetID", func(b []byte) { header.IPv4(b).SetID(0x0102) }, "ffffffff0102"},
		{"IPv4.SetFragment", func(b []byte) { header.IPv4(b).SetFragment(header.IPv4MoreFragments, 1480) }, "ffffffffffff20b9"},
		{"IPv4.SetTTL", func(b []byte) { header.IPv4(b).SetTTL(1) }, "ffffffffffffffff01"},
		{"IPv4.SetProtocol", func(b []byte) { header.IPv4(b).SetProtocol(1) }, "ffffffffffffffffff01"},
		{"IPv4.SetChecksum", func(b []byte) { header.IPv4(b).SetChecksum(0x0102) }, "ffffffffffffffffffff0102"},
		{"IPv4.SetSrc", func(b []byte) { header.IPv4(b).SetSrc(addr4) }, "ffffffffffffffffffffffffc0000201"},
		{"IPv4.SetDst", func(b []byte) { header.IPv4(b).SetDst(addr4) }, "ffffffffffffffffffffffffffffffffc0000201"},
		{"IPv6.SetTrafficClass", func(b []byte) { header.IPv6(b).SetTrafficClass(0) }, "f00f"},
		{"IPv6.SetFlowLabel", func(b []byte) { header.IPv6(b).SetFlowLabel(0x12345) }, "fff12345"},
		{"IPv6.SetPayloadLength", func(b []byte) { header.IPv6(b).SetPayloadLength(0x0102) }, "ffffffff0102"},
		{"IPv6.SetNextHeader", func(b []byte) { header.IPv6(b).SetNextHeader(1) }, "ffffffffffff01"},
		{"IPv6.SetHopLimit", func(b []byte) { header.IPv6(b).SetHopLimit(1) }, "ffffffffffffff01"},
		{"IPv6.SetSrc", func(b []byte) { header.IPv6(b).SetSrc(addr6) }, "ffffffffffffffff20010db8000000000000000000000001"},
		{"IPv6.SetDst", func(b []byte) { header.IPv6(b).SetDst(addr6) }, strings.Repeat("ff", 24) + "20010db8000000000000000000000001"},
		{"TCP.SetSrcPort", func(b []byte) { header.TCP(b).SetSrcPort(0x0102) }, "0102"},
		{"TCP.SetDstPort", func(b []byte) { header.TCP(b).SetDstPort(0x0102) }, "ffff0102"},
		{"TCP.SetSeq", func(b []byte) { header.TCP(b).SetSeq(0x01020304) }, "ffffffff01020304"},
		{"TCP.SetAck", func(b []byte) { header.TCP(b).SetAck(0x01020304) }, "ffffffffffffffff01020304"},
		{"TCP.SetFlags", func(b []byte) { header.TCP(b).SetFlags(1) }, "ffffffffffffffffffffffffff01"},
		{"TCP.SetWindow", func(b []byte) { header.TCP(b).SetWindow(0x0102) }, "ffffffffffffffffffffffffffff0102"},
		{"TCP.SetChecksum", func(b []byte) { header.TCP(b).SetChecksum(0x0102) }, "ffffffffffffffffffffffffffffffff0102"},
		{"TCP.SetUrgent", func(b []byte) { header.TCP(b).SetUrgent(0x0102) }, "ffffffffffffffffffffffffffffffffffff0102"},
		{"UDP.SetSrcPort", func(b []byte) { header.UDP(b).SetSrcPort(0x0102) }, "0102"},
		{"UDP.SetDstPort", func(b []byte) { header.UDP(b).SetDstPort(0x0102) }, "ffff0102"},
		{"UDP.SetLength", func(b []byte) { header.UDP(b).SetLength(0x0102) }, "ffffffff0102"},
		{"UDP.SetChecksum", func(b []byte) { header.UDP(b).SetChecksum(0x0102) }, "ffffffffffff0102"},
		{"ICMPv4.SetChecksum", func(b []byte) { header.ICMPv4(b).SetChecksum(0x0102) }, "ffff0102"},
		{"ICMPv4.SetID", func(b []byte) { header.ICMPv4(b).SetID(0x0102) }, "ffffffff0102"},
		{"ICMPv6.SetChecksum", func(b []byte) { header.ICMPv6(b).SetChecksum(0x0102) }, "ffff0102"},
		{"ICMPv6.SetID", func(b []byte) { header.ICMPv6(b).SetID(0x0102) }, "ffffffff0102"},
	} {
		b := bytes.Repeat([]byte{0xff}, 64)
		c.set(b)
		if got, want := hex.EncodeToString(b), c.want+strings.Repeat("ff", 64-len(c.want)/2); got != want {
			t.Errorf("%s:\n\t got %s\n\twant %s", c.name, got, want)
		}
	}
}

// TestParseRefuses has every length that lies, and every cut.
func TestParseRefuses(t *testing.T) {
	parsers := map[string]func([]byte) bool{
		"ethernet": func(b []byte) bool { _, ok := header.ParseEthernet(b); return ok },
		"arp":      func(b []byte) bool { _, ok := header.ParseARP(b); return ok },
		"ipv4":     func(b []byte) bool { _, ok := header.ParseIPv4(b); return ok },
		"ipv6":     func(b []byte) bool { _, ok := header.ParseIPv6(b); return ok },
		"tcp":      func(b []byte) bool { _, ok := header.ParseTCP(b); return ok },
		"udp":      func(b []byte) bool { _, ok := header.ParseUDP(b); return ok },
		"icmpv4":   func(b []byte) bool { _, ok := header.ParseICMPv4(b); return ok },
		"icmpv6":   func(b []byte) bool { _, ok := header.ParseICMPv6(b); return ok },
	}
	for _, c := range []struct {
		parser string
		good   []byte
		bad    map[int][]byte // at an offset, values that are refused
	}{
		{"ethernet", frame(t, `ether type=1`), nil},
		{"arp", frame(t, `arp who-has 198.51.100.1 tell 198.51.100.2`)[14:],
			map[int][]byte{0: {1}, 1: {0, 6}, 2: {0x86}, 3: {0xdd}, 4: {5, 7}, 5: {0, 16}, 6: {1}, 7: {0, 3, 8}}},
		{"ipv4", frame(t, `ip proto=1 1.2.3.4 > 5.6.7.8`)[14:], map[int][]byte{0: {0x44, 0x46, 0x65, 0x40}, 3: {0, 19, 21}}},
		{"ipv6", frame(t, `ip proto=1 fd00::1 > fd00::2`)[14:], map[int][]byte{0: {0x40, 0x50, 0x70}, 5: {1}}},
		{"tcp", ipv4(t, `tcp 1.2.3.4:1 > 5.6.7.8:2 SYN`).Payload(), map[int][]byte{12: {0, 0x40, 0x60, 0xf0}}},
		{"udp", ipv4(t, `udp 1.2.3.4:1 > 5.6.7.8:2`).Payload(), map[int][]byte{4: {1}, 5: {0, 7, 9}}},
		{"icmpv4", ipv4(t, `icmp echo-request 1.2.3.4 > 5.6.7.8`).Payload(), nil},
		{"icmpv6", ipv6(t, `icmp6 echo-request fd00::1 > fd00::2`).Payload(), nil},
	} {
		parse := parsers[c.parser]
		if !parse(c.good) {
			t.Errorf("%s refuses %x", c.parser, c.good)
		}
		if !parse(append(bytes.Clone(c.good), 0xff)) {
			t.Errorf("%s refuses %x with a byte behind it", c.parser, c.good)
		}
		for n := range c.good {
			if parse(bytes.Clone(c.good[:n])) {
				t.Errorf("%s accepts %d bytes of %x", c.parser, n, c.good)
			}
		}
		for at, values := range c.bad {
			for _, v := range values {
				b := bytes.Clone(c.good)
				b[at] = v
				if parse(b) {
					t.Errorf("%s accepts %x", c.parser, b)
				}
			}
		}
	}
}

func TestDecrementTTL(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 1))
	for range 20_000 {
		b := make([]byte, 20)
		for i := range b {
			b[i] = byte(r.Uint32() & -uint32(r.IntN(2)))
		}
		b[0] = 0x45
		ip := header.IPv4(b)
		ip.SetTTL(max(1, ip.TTL()))
		ip.UpdateChecksum()
		ttl := ip.TTL()
		ip.DecrementTTL()
		got := ip.Checksum()
		if !ip.ChecksumOK() {
			t.Fatalf("checksum of %x", b)
		}
		ip.UpdateChecksum()
		if ip.TTL() != ttl-1 || ip.Checksum() != got {
			t.Fatalf("TTL %d -> %d, checksum 0x%04x, want 0x%04x", ttl, ip.TTL(), got, ip.Checksum())
		}
	}
}

func TestWalk(t *testing.T) {
	const a = " fd00:1::5 > 2001:db8::8 "
	const udp = `udp [fd00:1::5]:1 > [2001:db8::8]:2 `
	eight := strings.Repeat("ext=dst ", 8)
	for _, c := range []struct {
		line  string
		fault header.ChainFault
		chain header.Chain
	}{
		{udp, header.ChainOK, header.Chain{Protocol: 17, Offset: 40}},
		{udp + `ext=hop ext=dst ext=route:00020000000000 ext=mobility ext=139 ext=140 ext=253 ext=254`, header.ChainOK, header.Chain{Protocol: 17, Offset: 104}},
		{udp + `ext=hop:00000000000000`, header.ChainOK, header.Chain{Protocol: 17, Offset: 48}},
		{udp + `ext=ah:010000000000000000ffff`, header.ChainOK, header.Chain{Protocol: 17, Offset: 52, Pinned: true}},
		{udp + `frag=9:0 ext=dst`, header.ChainOK, header.Chain{Protocol: 17, Offset: 56, Fragment: 40, ID: 9}},
		{udp + `ext=dst frag=9:0:more`, header.ChainOK, header.Chain{Protocol: 17, Offset: 56, Fragment: 48, MoreFragments: true, ID: 9}},
		{`ip proto=60` + a + `frag=9:1448 hex:ff`, header.ChainOK, header.Chain{Protocol: 60, Offset: 48, Fragment: 40, FragmentOffset: 1448, ID: 9}},
		{`ip proto=50` + a + `ext=dst`, header.ChainOK, header.Chain{Protocol: 50, Offset: 48}},
		{`ip proto=47` + a, header.ChainOK, header.Chain{Protocol: 47, Offset: 40}},
		{`ip proto=59` + a, header.ChainOK, header.Chain{Protocol: 59, Offset: 40}},
		{`ip proto=59` + a + `ext=dst "data"`, header.ChainOK, header.Chain{Protocol: 59, Offset: 48}},
		{udp + eight, header.ChainOK, header.Chain{Protocol: 17, Offset: 104}},
		{udp + eight + `ext=dst`, header.ChainOK, header.Chain{Protocol: 17, Offset: 112}},
		{udp + `ext=dst:1f` + strings.Repeat("00", 254), header.ChainOK, header.Chain{Protocol: 17, Offset: 296}},
		{udp + `ext=dst:20` + strings.Repeat("00", 262), header.ChainOK, header.Chain{Protocol: 17, Offset: 304}},
		{udp + `ext=dst:1f` + strings.Repeat("00", 254) + ` ext=dst`, header.ChainOK, header.Chain{Protocol: 17, Offset: 304}},
		{udp + `ext=dst ext=hop`, header.ChainHopByHopNotFirst, header.Chain{Protocol: 0, Offset: 48}},
		{udp + `ext=hop ext=hop`, header.ChainHopByHopNotFirst, header.Chain{Protocol: 0, Offset: 48}},
		{udp + `ext=hop:00c20400010000`, header.ChainJumbo, header.Chain{Protocol: 0, Offset: 40}},
		{`ip proto=0` + a, header.ChainJumbo, header.Chain{Protocol: 0, Offset: 40}},
		{udp + `ext=hop:00010500000000`, header.ChainHopByHopMalformed, header.Chain{Protocol: 0, Offset: 40}},
		{udp + `ext=hop:00000000000001`, header.ChainHopByHopMalformed, header.Chain{Protocol: 0, Offset: 40}},
		{udp + `ext=route:00000000000000`, header.ChainRoutingType0, header.Chain{Protocol: 43, Offset: 40}},
		{`ip proto=44` + a + `frag=9:0 hex:1100000000000009`, header.ChainSecondFragment, header.Chain{Protocol: 44, Offset: 48, Fragment: 40, ID: 9}},
		{`ip proto=60` + a + `hex:11000104000000`, header.ChainTruncated, header.Chain{Protocol: 60, Offset: 40}},
		{`ip proto=60` + a + `hex:1101010400000000`, header.ChainTruncated, header.Chain{Protocol: 60, Offset: 40}},
		{`ip proto=44` + a + `hex:11000000000000`, header.ChainTruncated, header.Chain{Protocol: 44, Offset: 40}},
		{`ip proto=51` + a + `hex:1101000000000000`, header.ChainTruncated, header.Chain{Protocol: 51, Offset: 40}},
	} {
		chain, fault := ipv6(t, c.line).Walk()
		if fault != c.fault || chain != c.chain {
			t.Errorf("%s:\n\t got %v %+v\n\twant %v %+v", c.line, fault, chain, c.fault, c.chain)
		}
	}
	for f := header.ChainOK; f <= header.ChainHopByHopMalformed; f++ {
		if f.String() == "" {
			t.Errorf("fault %d has no name", f)
		}
	}
}

func TestIsFragment(t *testing.T) {
	for line, want := range map[string]bool{
		`udp [fd00::1]:1 > [fd00::2]:2`:                     false,
		`udp [fd00::1]:1 > [fd00::2]:2 frag=9:0`:            false, // atomic
		`udp [fd00::1]:1 > [fd00::2]:2 frag=9:0:more`:       true,
		`ip proto=17 fd00::1 > fd00::2 frag=9:8 len=8`:      true,
		`ip proto=17 fd00::1 > fd00::2 frag=9:8:more len=8`: true,
	} {
		if chain, _ := ipv6(t, line).Walk(); chain.IsFragment() != want {
			t.Errorf("%s: %v", line, !want)
		}
	}
}

func TestClampMSS(t *testing.T) {
	const tcp = `tcp 1.2.3.4:1 > 5.6.7.8:2 SYN `
	for _, c := range []struct{ before, after string }{
		{`mss=1460`, `mss=1300`},
		{`mss=1300`, `mss=1300`},
		{`mss=536`, `mss=536`},
		{`nop mss=1460 "odd"`, `nop mss=1300 "odd"`},
		{`mss=9000 nop mss=1400 nop mss=1301`, `mss=1300 nop mss=1300 nop mss=1300`},
		{`opt=00020405b4`, `opt=00020405b4`},         // behind the end
		{`opt=0500020405b4`, `opt=0500020405b4`},     // length 0
		{`opt=0501020405b4`, `opt=0501020405b4`},     // length 1
		{`opt=020305b4`, `opt=020305b4`},             // an MSS of another length
		{`nop nop nop opt=02`, `nop nop nop opt=02`}, // cut short
		{`nop nop opt=0204`, `nop nop opt=0204`},     // reaches out
		{`ts=1:2 mss=65535 sackok`, `ts=1:2 mss=1300 sackok`},
		{`"no options"`, `"no options"`},
	} {
		ip, want := ipv4(t, tcp+c.before), ipv4(t, tcp+c.after)
		segment, ok := header.ParseTCP(ip.Payload())
		if !ok {
			t.Fatalf("ParseTCP refuses %s", c.before)
		}
		changed := segment.ClampMSS(1300)
		if changed != (c.before != c.after) || !bytes.Equal(ip, want) {
			t.Errorf("%s: changed %v\n\t got %x\n\twant %x", c.before, changed, ip, want)
		}
	}
}

func TestQuoted(t *testing.T) {
	for _, c := range []struct {
		line string
		want int
	}{
		{`icmp unreachable 1 1.2.3.4 > 5.6.7.8 len=40`, 40},
		{`icmp unreachable 1 1.2.3.4 > 5.6.7.8 rest=0x00080000 len=40`, 32},
		{`icmp unreachable 1 1.2.3.4 > 5.6.7.8 rest=0x000a0000 len=40`, 40},
		{`icmp unreachable 1 1.2.3.4 > 5.6.7.8 rest=0x000b0000 len=40`, 40}, // lies
		{`icmp 5/0 1.2.3.4 > 5.6.7.8 rest=0x01080203 len=40`, 40},           // a gateway address
		{`icmp6 unreachable 1 fd00::1 > fd00::2 rest=0x04000000 len=40`, 32},
		{`icmp6 time-exceeded 0 fd00::1 > fd00::2 rest=0xff000000 len=40`, 40}, // lies
		{`icmp6 too-big fd00::1 > fd00::2 mtu=67108864 len=40`, 40},            // an MTU
	} {
		got := 0
		if strings.HasPrefix(c.line, "icmp6") {
			m, _ := header.ParseICMPv6(ipv6(t, c.line).Payload())
			got = len(m.Quoted())
		} else {
			m, _ := header.ParseICMPv4(ipv4(t, c.line).Payload())
			got = len(m.Quoted())
		}
		if got != c.want {
			t.Errorf("%s: quotes %d bytes, want %d", c.line, got, c.want)
		}
	}
}

// FuzzParse: parsers take anything, views stay inside their input, and methods do not panic.
func FuzzParse(f *testing.F) {
	for _, line := range []string{
		`tcp 1.2.3.4:1 > 5.6.7.8:2 SYN mss=1460 ts=1:2`,
		`udp 1.2.3.4:1 > 5.6.7.8:2 ipopt=94040000 "hello" pad=4`,
		`icmp unreachable 1 1.2.3.4 > 5.6.7.8 quote(udp 5.6.7.8:1 > 9.9.9.9:2)`,
		`udp [fd00::1]:1 > [fd00::2]:2 ext=hop ext=route:00020000000000 frag=9:0:more ext=ah:00`,
		`nd solicit fd00::1 > ff02::1:ff00:2 target=fd00::2 slla=02:00:00:00:00:05`,
		`nd advert fd00::1 > fd00::2 target=fd00::1 solicited tlla=02:00:00:00:00:05`,
		`icmp6 echo-request fd00::1 > fd00::2 id=1 "ping"`,
		`arp who-has 198.51.100.1 tell 198.51.100.2`,
	} {
		f.Add(frame(f, line)[header.EthernetSize:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		within := func(name string, view []byte) {
			if len(view) > len(b) {
				t.Fatalf("%s: %d bytes of %d", name, len(view), len(b))
			}
		}
		transport := func(b []byte) {
			if v, ok := header.ParseTCP(b); ok {
				within("TCP", v)
				if header.TCPSize+len(v.Options())+len(v.Payload()) != len(v) {
					t.Fatalf("TCP: parts do not make the whole")
				}
				header.TCP(bytes.Clone(v)).ClampMSS(100)
			}
			if v, ok := header.ParseUDP(b); ok {
				within("UDP", v)
			}
			if v, ok := header.ParseICMPv4(b); ok {
				within("ICMPv4", v.Quoted())
			}
			if v, ok := header.ParseICMPv6(b); ok {
				within("ICMPv6", v.Quoted())
			}
		}
		transport(b)
		if v, ok := header.ParseEthernet(b); ok {
			within("Ethernet", v.Payload())
		}
		if v, ok := header.ParseARP(b); ok {
			within("ARP", v)
			header.AppendARPReply(nil, header.MAC{}, v)
		}
		if ip, ok := header.ParseIPv4(b); ok {
			within("IPv4", ip)
			if ip.HeaderLength()+len(ip.Payload()) != len(ip) || len(ip.Options())+header.IPv4Size != ip.HeaderLength() {
				t.Fatalf("IPv4: parts do not make the whole")
			}
			transport(ip.Payload())
			if header.MayAnswerIPv4(ip, header.MAC{}) {
				answer := header.AppendICMPv4Error(nil, header.PacketTooBig, netip.AddrFrom4([4]byte{1, 1, 1, 1}), 0, ip)
				if len(answer) > header.MaxICMPv4Size {
					t.Fatalf("ICMP error of %d bytes", len(answer))
				}
			}
			header.AppendEchoReplyIPv4(nil, ip)
		}
		if ip, ok := header.ParseIPv6(b); ok {
			within("IPv6", ip)
			chain, fault := ip.Walk()
			if chain.Offset > len(ip) || chain.Fragment > chain.Offset {
				t.Fatalf("IPv6: %+v, %v in %d bytes", chain, fault, len(ip))
			}
			transport(ip[chain.Offset:])
			if header.MayAnswerIPv6(ip, header.MAC{}, header.TimeExceeded) {
				answer := header.AppendICMPv6Error(nil, header.TimeExceeded, netip.IPv6Loopback(), 0, ip)
				if len(answer) > header.MaxICMPv6Size {
					t.Fatalf("ICMPv6 error of %d bytes", len(answer))
				}
			}
			header.AppendEchoReplyIPv6(nil, ip)
			if s, ok := header.ParseNeighborSolicitation(ip); ok {
				s.Target()
				s.LinkLayer()
			}
			if a, ok := header.ParseNeighborAdvertisement(ip); ok {
				a.Target()
				a.LinkLayer()
			}
		}
	})
}
