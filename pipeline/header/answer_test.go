// SPDX-License-Identifier: Apache-2.0

package header_test

import (
	"net/netip"
	"strings"
	"testing"

	"weir/pipeline/header"
	"weir/pipeline/packettext"
)

var (
	unicast = header.MAC{2, 0, 0, 0, 0, 1}
	group   = header.MAC{1, 0, 0x5e, 0, 0, 1}
	four    = netip.MustParseAddr("172.30.0.1")
	six     = netip.MustParseAddr("fd00:1::1")
)

func TestMayAnswerIPv4(t *testing.T) {
	for _, c := range []struct {
		line string
		l2   header.MAC
		want bool
	}{
		{`udp 172.30.0.5:1 > 8.8.8.8:2`, unicast, true},
		{`tcp 172.30.0.5:1 > 8.8.8.8:2 SYN`, unicast, true},
		{`ip proto=47 172.30.0.5 > 8.8.8.8`, unicast, true},
		{`udp 172.30.0.5:1 > 8.8.8.8:2 frag=7:0:more len=8`, unicast, true},
		{`icmp echo-request 172.30.0.5 > 8.8.8.8`, unicast, true},
		{`icmp 13/0 172.30.0.5 > 8.8.8.8`, unicast, true},
		{`udp 172.30.0.5:1 > 8.8.8.8:2`, group, false},
		{`udp 172.30.0.5:1 > 8.8.8.8:2`, header.Broadcast, false},
		{`ip proto=17 172.30.0.5 > 8.8.8.8 frag=7:8 len=8`, unicast, false},
		{`udp 172.30.0.5:1 > 224.0.0.1:2`, unicast, false},
		{`udp 172.30.0.5:1 > 239.255.255.255:2`, unicast, false},
		{`udp 172.30.0.5:1 > 255.255.255.255:2`, unicast, false},
		{`udp 172.30.0.5:1 > 0.0.0.0:2`, unicast, false},
		{`udp 0.0.0.0:1 > 8.8.8.8:2`, unicast, false},
		{`udp 0.1.2.3:1 > 8.8.8.8:2`, unicast, false},
		{`udp 127.0.0.1:1 > 8.8.8.8:2`, unicast, false},
		{`udp 224.0.0.1:1 > 8.8.8.8:2`, unicast, false},
		{`udp 240.0.0.1:1 > 8.8.8.8:2`, unicast, false},
		{`udp 255.255.255.255:1 > 8.8.8.8:2`, unicast, false},
		{`icmp unreachable 1 172.30.0.5 > 8.8.8.8`, unicast, false},
		{`icmp 4/0 172.30.0.5 > 8.8.8.8`, unicast, false},
		{`icmp 5/0 172.30.0.5 > 8.8.8.8`, unicast, false},
		{`icmp time-exceeded 0 172.30.0.5 > 8.8.8.8`, unicast, false},
		{`icmp 12/0 172.30.0.5 > 8.8.8.8`, unicast, false},
		{`icmp 42/0 172.30.0.5 > 8.8.8.8`, unicast, false},
		{`ip proto=1 172.30.0.5 > 8.8.8.8`, unicast, false}, // its type is missing
	} {
		if got := header.MayAnswerIPv4(ipv4(t, c.line), c.l2); got != c.want {
			t.Errorf("%s to %s: %v", c.line, c.l2, got)
		}
	}
}

func TestMayAnswerIPv6(t *testing.T) {
	const any, tooBig = header.Prohibited, header.PacketTooBig
	for _, c := range []struct {
		line string
		l2   header.MAC
		e    header.ICMPError
		want bool
	}{
		{`udp [fd00:1::5]:1 > [2001:db8::8]:2`, unicast, any, true},
		{`udp [fe80::5]:1 > [2001:db8::8]:2 ext=dst`, unicast, any, true},
		{`udp [fd00:1::5]:1 > [2001:db8::8]:2 frag=7:0:more len=8`, unicast, any, true},
		{`icmp6 echo-request fd00:1::5 > 2001:db8::8`, unicast, any, true},
		{`nd solicit fd00:1::5 > 2001:db8::8 target=2001:db8::8`, unicast, any, true},
		{`udp [fd00:1::5]:1 > [2001:db8::8]:2`, group, any, false},
		{`udp [fd00:1::5]:1 > [2001:db8::8]:2`, group, tooBig, true},
		{`udp [fd00:1::5]:1 > [2001:db8::8]:2`, header.Broadcast, tooBig, false},
		{`udp [fd00:1::5]:1 > [ff02::1]:2`, unicast, any, false},
		{`udp [fd00:1::5]:1 > [ff02::1]:2`, group, tooBig, true},
		{`udp [fd00:1::5]:1 > [::]:2`, unicast, any, false},
		{`udp [::]:1 > [2001:db8::8]:2`, unicast, any, false},
		{`udp [::1]:1 > [2001:db8::8]:2`, unicast, any, false},
		{`udp [ff02::1]:1 > [2001:db8::8]:2`, unicast, tooBig, false},
		{`icmp6 unreachable 1 fd00:1::5 > 2001:db8::8`, unicast, any, false},
		{`icmp6 too-big fd00:1::5 > 2001:db8::8 ext=dst`, unicast, tooBig, false},
		{`icmp6 127/0 fd00:1::5 > 2001:db8::8`, unicast, any, false},
		{`icmp6 137/0 fd00:1::5 > 2001:db8::8`, unicast, any, false},
		{`ip proto=58 fd00:1::5 > 2001:db8::8`, unicast, any, false},
		{`ip proto=17 fd00:1::5 > 2001:db8::8 frag=7:8 len=8`, unicast, any, false},
		{`udp [fd00:1::5]:1 > [2001:db8::8]:2 ext=dst ext=hop`, unicast, any, false},
	} {
		if got := header.MayAnswerIPv6(ipv6(t, c.line), c.l2, c.e); got != c.want {
			t.Errorf("%s to %s, %s: %v", c.line, c.l2, c.e, got)
		}
	}
}

// TestSays compares what the builders make with its text, and lets the verifier judge it.
func TestSays(t *testing.T) {
	const four4, six6 = `172.30.0.1 > 172.30.0.5`, `fd00:1::1 > fd00:1::5`
	const udp4, udp6 = `udp 172.30.0.5:1 > 8.8.8.8:2 ipid=7 "hello"`, `udp [fd00:1::5]:1 > [2001:db8::8]:2 "hello"`
	error4 := func(e header.ICMPError, mtu uint16, about string) func([]byte) []byte {
		return func(b []byte) []byte { return header.AppendICMPv4Error(b, e, four, mtu, ipv4(t, about)) }
	}
	error6 := func(e header.ICMPError, mtu uint32, about string) func([]byte) []byte {
		return func(b []byte) []byte { return header.AppendICMPv6Error(b, e, six, mtu, ipv6(t, about)) }
	}
	addr := netip.MustParseAddr
	for _, c := range []struct {
		name      string
		etherType uint16
		append    func([]byte) []byte
		want      string
	}{
		{"ARP request", header.EtherTypeARP, func(b []byte) []byte {
			return header.AppendARPRequest(b, unicast, addr("198.51.100.2"), addr("198.51.100.1"))
		}, `arp who-has 198.51.100.1 tell 198.51.100.2`},
		{"ARP reply", header.EtherTypeARP, func(b []byte) []byte {
			request, _ := header.ParseARP(frame(t, `arp who-has 198.51.100.1 tell 198.51.100.2 pad=18`)[14:])
			return header.AppendARPReply(b, unicast, request)
		}, `arp reply 198.51.100.1 is-at 02:00:00:00:00:01 to 198.51.100.2`},
		{"solicitation", header.EtherTypeIPv6, func(b []byte) []byte {
			return header.AppendNeighborSolicitation(b, unicast, six, header.SolicitedNode(addr("fd00:1::ab:cdef:5")), addr("fd00:1::ab:cdef:5"))
		}, `nd solicit fd00:1::1 > ff02::1:ffef:5 target=fd00:1::ab:cdef:5 slla=02:00:00:00:00:01`},
		{"solicitation for duplicates", header.EtherTypeIPv6, func(b []byte) []byte {
			return header.AppendNeighborSolicitation(b, unicast, netip.IPv6Unspecified(), header.SolicitedNode(six), six)
		}, `nd solicit :: > ff02::1:ff00:1 target=fd00:1::1`},
		{"advertisement", header.EtherTypeIPv6, func(b []byte) []byte {
			return header.AppendNeighborAdvertisement(b, unicast, header.NDPRouter|header.NDPSolicited|header.NDPOverride, six, addr("fd00:1::5"), six)
		}, `nd advert fd00:1::1 > fd00:1::5 target=fd00:1::1 router solicited override tlla=02:00:00:00:00:01`},
		{"advertisement to nobody in particular", header.EtherTypeIPv6, func(b []byte) []byte {
			return header.AppendNeighborAdvertisement(b, unicast, header.NDPSolicited|header.NDPOverride, six, netip.IPv6Unspecified(), six)
		}, `nd advert fd00:1::1 > ff02::1 target=fd00:1::1 override tlla=02:00:00:00:00:01`},
		{"pong", header.EtherTypeIPv4, func(b []byte) []byte {
			b, _ = header.AppendEchoReplyIPv4(b, ipv4(t, `icmp echo-request 172.30.0.5 > 172.30.0.1 id=7 seq=1 tos=4 ttl=1 ipopt=94040000 "odd"`))
			return b
		}, `icmp echo-reply ` + four4 + ` id=7 seq=1 tos=4 df "odd"`},
		{"pong of zeros", header.EtherTypeIPv4, func(b []byte) []byte {
			b, _ = header.AppendEchoReplyIPv4(b, ipv4(t, `icmp echo-request 172.30.0.5 > 172.30.0.1`))
			return b
		}, `icmp echo-reply ` + four4 + ` df`},
		{"pong, IPv6", header.EtherTypeIPv6, func(b []byte) []byte {
			b, _ = header.AppendEchoReplyIPv6(b, ipv6(t, `icmp6 echo-request fd00:1::5 > fd00:1::1 id=7 seq=1 tos=4 flow=9 frag=1:0 ext=dst "odd"`))
			return b
		}, `icmp6 echo-reply ` + six6 + ` id=7 seq=1 tos=4 "odd"`},
		{"host unreachable", header.EtherTypeIPv4, error4(header.HostUnreachable, 9, udp4),
			`icmp unreachable 1 ` + four4 + ` tos=192 df quote(` + udp4 + `)`},
		{"prohibited", header.EtherTypeIPv4, error4(header.Prohibited, 9, udp4),
			`icmp unreachable 13 ` + four4 + ` tos=192 df quote(` + udp4 + `)`},
		{"time exceeded", header.EtherTypeIPv4, error4(header.TimeExceeded, 9, udp4),
			`icmp time-exceeded 0 ` + four4 + ` tos=192 df quote(` + udp4 + `)`},
		{"fragmentation needed, cut", header.EtherTypeIPv4, error4(header.PacketTooBig, 1400, `udp 172.30.0.5:1 > 8.8.8.8:2 df len=1472`),
			`icmp unreachable 4 ` + four4 + ` mtu=1400 tos=192 df quote(udp 172.30.0.5:1 > 8.8.8.8:2 df len=1472 cut=548)`},
		{"fragmentation needed, least MTU", header.EtherTypeIPv4, error4(header.PacketTooBig, 0, udp4),
			`icmp unreachable 4 ` + four4 + ` mtu=68 tos=192 df quote(` + udp4 + `)`},
		{"IPv6 host unreachable", header.EtherTypeIPv6, error6(header.HostUnreachable, 9, udp6),
			`icmp6 unreachable 3 ` + six6 + ` quote(` + udp6 + `)`},
		{"IPv6 prohibited", header.EtherTypeIPv6, error6(header.Prohibited, 9, udp6),
			`icmp6 unreachable 1 ` + six6 + ` quote(` + udp6 + `)`},
		{"IPv6 time exceeded", header.EtherTypeIPv6, error6(header.TimeExceeded, 9, udp6),
			`icmp6 time-exceeded 0 ` + six6 + ` quote(` + udp6 + `)`},
		{"IPv6 too big, cut", header.EtherTypeIPv6, error6(header.PacketTooBig, 1400, `udp [fd00:1::5]:1 > [2001:db8::8]:2 len=1452`),
			`icmp6 too-big ` + six6 + ` mtu=1400 quote(udp [fd00:1::5]:1 > [2001:db8::8]:2 len=1452 cut=1232)`},
		{"IPv6 too big, least MTU", header.EtherTypeIPv6, error6(header.PacketTooBig, 0, udp6),
			`icmp6 too-big ` + six6 + ` mtu=1280 quote(` + udp6 + `)`},
	} {
		dirty := []byte(strings.Repeat("\xff", 2048))
		b := c.append(header.AppendEthernet(dirty[:0], header.MAC{2, 0, 0, 0, 0, 5}, unicast, c.etherType))
		if got, want := packettext.Format(b), "02:00:00:00:00:01 > 02:00:00:00:00:05 "+c.want; got != want {
			t.Errorf("%s:\n\t got %s\n\twant %s", c.name, got, want)
		}
		if err := packettext.Verify(b); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if again := c.append(nil); string(again) != string(b[header.EthernetSize:]) {
			t.Errorf("%s: appended to nothing it is %x", c.name, again)
		}
	}
}

func TestEchoReplyRefuses(t *testing.T) {
	for _, line := range []string{
		`icmp echo-reply 172.30.0.5 > 172.30.0.1`,
		`icmp 8/1 172.30.0.5 > 172.30.0.1`,
		`icmp echo-request 172.30.0.5 > 172.30.0.1 sum=bad`,
		`icmp echo-request 172.30.0.5 > 172.30.0.1 frag=7:0:more`,
		`ip proto=1 172.30.0.5 > 172.30.0.1 hex:0800f7ff000000`,
		`ip proto=17 172.30.0.5 > 172.30.0.1 hex:0800f7ff00000000`,
	} {
		if b, ok := header.AppendEchoReplyIPv4(nil, ipv4(t, line)); ok || b != nil {
			t.Errorf("%s: %x", line, b)
		}
	}
	for _, line := range []string{
		`icmp6 echo-reply fd00:1::5 > fd00:1::1`,
		`icmp6 128/1 fd00:1::5 > fd00:1::1`,
		`icmp6 echo-request fd00:1::5 > fd00:1::1 sum=bad`,
		`icmp6 echo-request fd00:1::5 > fd00:1::1 frag=7:0:more`,
		`icmp6 echo-request fd00:1::5 > fd00:1::1 ext=dst ext=hop`,
		`ip proto=58 fd00:1::5 > fd00:1::1 hex:80000000000000`,
	} {
		if b, ok := header.AppendEchoReplyIPv6(nil, ipv6(t, line)); ok || b != nil {
			t.Errorf("%s: %x", line, b)
		}
	}
}

func TestNeighborDiscovery(t *testing.T) {
	const solicit, advert = `nd solicit fd00:1::5 > ff02::1:ff00:1 target=fd00:1::1 `, `nd advert fd00:1::1 > fd00:1::5 target=fd00:1::1 `
	five := header.MAC{2, 0, 0, 0, 0, 5}
	for _, c := range []struct {
		line string
		ok   bool
		mac  header.MAC // zero: none
	}{
		{solicit + `slla=02:00:00:00:00:05`, true, five},
		{solicit, true, header.MAC{}},
		{solicit + `ndopt=0e01000000000000 slla=02:00:00:00:00:05`, true, five}, // a nonce before it
		{solicit + `tlla=02:00:00:00:00:05`, true, header.MAC{}},
		{solicit + `ndopt=01020200000000050000000000000000`, true, header.MAC{}}, // of another link layer
		{solicit + `slla=02:00:00:00:00:05 ext=dst`, true, five},
		{`nd solicit :: > ff02::1:ff00:1 target=fd00:1::1`, true, header.MAC{}},
		{`nd solicit :: > ff02::1:ff00:1 target=fd00:1::1 slla=02:00:00:00:00:05`, false, header.MAC{}},
		{`nd solicit :: > fd00:1::1 target=fd00:1::1`, false, header.MAC{}},
		{`nd solicit fd00:1::5 > fd00:1::1 target=ff02::1`, false, header.MAC{}},
		{solicit + `ttl=254`, false, header.MAC{}},
		{solicit + `sum=bad`, false, header.MAC{}},
		{solicit + `frag=7:0`, false, header.MAC{}},
		{solicit + `ext=dst ext=hop`, false, header.MAC{}},
		{solicit + `ndopt=0100020000000005`, false, header.MAC{}},
		{solicit + `ndopt=0102020000000005`, false, header.MAC{}},
		{solicit + `slla=02:00:00:00:00:05 ndopt=01`, false, header.MAC{}},
		{`icmp6 135/1 fd00:1::5 > fd00:1::1 ttl=255 len=16`, false, header.MAC{}},
		{`icmp6 135/0 fd00:1::5 > fd00:1::1 ttl=255 len=15`, false, header.MAC{}},
		{advert, false, header.MAC{}},
	} {
		s, ok := header.ParseNeighborSolicitation(ipv6(t, c.line))
		if ok != c.ok {
			t.Errorf("%s: %v", c.line, ok)
		}
		if !ok {
			continue
		}
		if mac, found := s.LinkLayer(); mac != c.mac || found != (c.mac != header.MAC{}) {
			t.Errorf("%s: link layer %v %v", c.line, mac, found)
		}
		if s.Target() != six {
			t.Errorf("%s: target %s", c.line, s.Target())
		}
	}
	for _, c := range []struct {
		line  string
		ok    bool
		flags uint8
		mac   header.MAC
	}{
		{advert + `router solicited override tlla=02:00:00:00:00:05`, true, header.NDPRouter | header.NDPSolicited | header.NDPOverride, five},
		{advert + `solicited`, true, header.NDPSolicited, header.MAC{}},
		{advert + `slla=02:00:00:00:00:05`, true, 0, header.MAC{}},
		{`nd advert fd00:1::1 > ff02::1 target=fd00:1::1 override`, true, header.NDPOverride, header.MAC{}},
		{`nd advert fd00:1::1 > ff02::1 target=fd00:1::1 solicited`, false, 0, header.MAC{}},
		{advert + `ttl=1`, false, 0, header.MAC{}},
		{solicit, false, 0, header.MAC{}},
	} {
		a, ok := header.ParseNeighborAdvertisement(ipv6(t, c.line))
		if ok != c.ok {
			t.Errorf("%s: %v", c.line, ok)
		}
		if !ok {
			continue
		}
		if mac, found := a.LinkLayer(); mac != c.mac || found != (c.mac != header.MAC{}) || a.Flags() != c.flags || a.Target() != six {
			t.Errorf("%s: link layer %v %v, flags %02x, target %s", c.line, mac, found, a.Flags(), a.Target())
		}
	}
	if got := header.MulticastMAC(header.SolicitedNode(six)); got != (header.MAC{0x33, 0x33, 0xff, 0, 0, 1}) {
		t.Errorf("multicast MAC %s", got)
	}
}

// TestNoAllocs: with room in the buffer, nothing here allocates.
func TestNoAllocs(t *testing.T) {
	room := make([]byte, 0, 2048)
	v4, v6 := ipv4(t, `tcp 172.30.0.5:1 > 8.8.8.8:2 SYN mss=1460`), ipv6(t, `udp [fd00:1::5]:1 > [2001:db8::8]:2 ext=dst "hello"`)
	ping4, ping6 := ipv4(t, `icmp echo-request 172.30.0.5 > 172.30.0.1`), ipv6(t, `icmp6 echo-request fd00:1::5 > fd00:1::1`)
	ns := ipv6(t, `nd solicit fd00:1::5 > ff02::1:ff00:1 target=fd00:1::1 slla=02:00:00:00:00:05`)
	if n := testing.AllocsPerRun(100, func() {
		ip, _ := header.ParseIPv4(v4)
		ip.DecrementTTL()
		tcp, _ := header.ParseTCP(ip.Payload())
		tcp.ClampMSS(1300)
		d := header.Delta(0).Replace32(1, 2).Replace16(3, 4).Replace128((*[16]byte)(v6[8:]), (*[16]byte)(v6[24:]))
		tcp.SetChecksum(d.Apply(tcp.Checksum()))
		v6.Walk()
		if header.MayAnswerIPv4(ip, unicast) {
			header.AppendICMPv4Error(header.AppendEthernet(room, unicast, unicast, header.EtherTypeIPv4), header.Prohibited, four, 0, ip)
		}
		if header.MayAnswerIPv6(v6, unicast, header.Prohibited) {
			header.AppendICMPv6Error(room, header.Prohibited, six, 0, v6)
		}
		header.AppendEchoReplyIPv4(room, ping4)
		header.AppendEchoReplyIPv6(room, ping6)
		s, _ := header.ParseNeighborSolicitation(ns)
		header.AppendNeighborAdvertisement(room, unicast, header.NDPSolicited, s.Target(), ns.Src(), s.Target())
		header.AppendARPRequest(room, unicast, four, four)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
