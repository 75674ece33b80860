// SPDX-License-Identifier: Apache-2.0

package packettext

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

const ether = "02:00:00:00:00:05 > 02:00:00:00:00:01 "

// canonical lines are what Format makes of their frames; all but the marked ones pass Verify.
var canonical = []struct{ line, fault string }{
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 "hello"`, ""},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 ttl=1 tos=184 ipid=7 df "a\nb" len=100`, ""},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53`, ""},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 sum=0 "hello"`, ""},
	{`udp [fd00:1::5]:40000 > [2001:db8::8]:53 tos=3 flow=12345 hex:00ff`, ""},
	{`udp [::ffff:192.0.2.1]:1 > [2001:db8::8]:53 hex:0a0b0c`, ""},
	{`udp [fd00:1::5]:40000 > [2001:db8::8]:53 ext=hop ext=route:00020000000000 frag=9:0 ext=dst "x"`, ""},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 pad=14 "abcd"`, ""},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 ipopt=94040000 "abcd"`, ""},
	{`vlan=100 udp 172.30.0.5:40000 > 8.8.8.8:53`, ""},
	{`qinq=40 vlan=40961 udp 172.30.0.5:40000 > 8.8.8.8:53`, ""},
	{`tcp 172.30.0.5:40000 > 8.8.8.8:80 SYN seq=1 mss=1460 sackok ts=1:0 nop ws=7`, ""},
	{`tcp 172.30.0.5:40000 > 8.8.8.8:80 PSH,ACK seq=1 ack=4294967295 win=0 urg=3 nop nop opt=050a0000000100000002 "GET / \"x\" (y"`, ""},
	{`tcp 172.30.0.5:40000 > 8.8.8.8:80 none ws=7`, ""},
	{`tcp [fd00:1::5]:40000 > [2001:db8::8]:80 SYN,ACK`, ""},
	{`icmp echo-request 172.30.0.5 > 8.8.8.8 id=7 seq=1 "ping"`, ""},
	{`icmp echo-reply 8.8.8.8 > 172.30.0.5`, ""},
	{`icmp timestamp 172.30.0.5 > 8.8.8.8 id=7 seq=1 len=12`, ""},
	{`icmp unreachable 13 198.51.100.2 > 172.30.0.5 tos=192 df quote(udp 172.30.0.5:40000 > 8.8.8.8:53 ttl=63 "hello)")`, ""},
	{`icmp unreachable 4 198.51.100.2 > 172.30.0.5 mtu=1400 quote(tcp 172.30.0.5:40000 > 8.8.8.8:80 none seq=9 len=1440 cut=28)`, ""},
	{`icmp time-exceeded 0 198.51.100.2 > 172.30.0.5 quote(icmp echo-request 172.30.0.5 > 8.8.8.8 id=7 seq=1 "ping")`, ""},
	{`icmp time-exceeded 0 198.51.100.2 > 172.30.0.5 rest=2097152 quote(udp 172.30.0.5:1 > 8.8.8.8:2 pad=hex:` +
		strings.Repeat("00", 100) + `2000dfff)`, ""},
	{`icmp6 unreachable 1 fd00:1::1 > fd00:1::5 quote(udp [fd00:1::5]:40000 > [2001:db8::8]:53 "hello")`, ""},
	{`icmp6 too-big fd00:1::1 > fd00:1::5 mtu=1280 quote(udp [fd00:1::5]:40000 > [2001:db8::8]:53 ext=dst len=2000 cut=1232)`, ""},
	{`icmp6 echo-request fd00:1::5 > 2001:db8::8 id=7 seq=1 "ping"`, ""},
	{`icmp6 133/0 fe80::1 > ff02::2 ttl=255`, ""},
	{`nd solicit fd00:1::5 > ff02::1:ff00:1 target=fd00:1::1 slla=02:00:00:00:00:05`, ""},
	{`nd advert fd00:1::1 > fd00:1::5 target=fd00:1::1 router solicited override tlla=02:00:00:00:00:01`, ""},
	{`ip proto=47 172.30.0.5 > 8.8.8.8 hex:00000800`, ""},
	{`ip proto=59 fd00:1::5 > 2001:db8::8`, ""},
	{`ip proto=17 172.30.0.5 > 8.8.8.8 frag=7:1480 len=100`, ""},
	{`ip proto=17 fd00:1::5 > 2001:db8::8 frag=7:1448:more len=96`, ""},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 ulen=1588 frag=7:0:more sum=0x1234 len=1472`, ""},
	{`udp [fd00:1::5]:40000 > [2001:db8::8]:53 ulen=1000 frag=7:0:more sum=0x1234 len=8`, ""},
	{`udp [fd00:1::5]:40000 > [2001:db8::8]:53 ext=route:00020100000000 sum=0x1234`, ""}, // about the final destination
	{`qinq=1 vlan=2 udp 172.30.0.5:40000 > 8.8.8.8:53 pad=18`, ""},
	{`icmp unreachable 1 198.51.100.2 > 172.30.0.5 quote(icmp unreachable 1 172.30.0.5 > 8.8.8.8 "no packet")`, ""},
	{`icmp6 unreachable 1 fd00:1::1 > fd00:1::5 quote(icmp6 135/0 fd00:1::5 > fd00:1::9 len=16)`, ""},
	{`icmp6 unreachable 1 fd00:1::1 > fd00:1::5 quote(ip proto=60 fd00:1::5 > 2001:db8::8 ext=dst hex:11000104 len=12 cut=52)`, ""},
	{`arp who-has 198.51.100.1 tell 198.51.100.2`, ""},
	{`arp who-has 198.51.100.1 tell 198.51.100.2 sha=02:00:00:00:00:09 pad=18`, ""},
	{`arp reply 198.51.100.2 is-at 02:00:00:00:00:05 to 198.51.100.1`, ""},
	{`arp reply 198.51.100.2 is-at 02:00:00:00:00:09 to 198.51.100.1 tha=00:00:00:00:00:00`, ""},
	{`udp [fd00:1::5]:40000 > [2001:db8::8]:53 ext=hip ext=shim6 ext=test1 ext=test2 ext=mobility:00000000000000 "x"`, ""},
	{`ip proto=136 172.30.0.5 > 8.8.8.8 hex:9c400035000062ef68656c6c6f`, ""},
	{`ip proto=136 172.30.0.5 > 8.8.8.8 hex:9c4000350008a6b968656c6c6f`, ""}, // covers the header
	{`ip proto=136 172.30.0.5 > 8.8.8.8 hex:9c400035000bd25068656c6c6f`, ""},
	{`ip proto=33 172.30.0.5 > 8.8.8.8 hex:9c40003503008e090000000068656c6c6f68656c6c6f`, ""},
	{`ip proto=33 172.30.0.5 > 8.8.8.8 hex:9c4000350301a41e0000000068656c6c6f68656c6c6f`, ""},
	{`ip proto=33 172.30.0.5 > 8.8.8.8 hex:9c4000350302cf4b0000000068656c6c6f68656c6c6f`, ""},
	{`icmp time-exceeded 0 198.51.100.2 > 172.30.0.5 rest=2097152 quote(udp 172.30.0.5:1 > 8.8.8.8:2 pad=hex:` +
		strings.Repeat("00", 100) + `2000feb3000801010001e041)`, ""},
	{`icmp time-exceeded 0 198.51.100.2 > 172.30.0.5 rest=2097152 quote(udp 172.30.0.5:1 > 8.8.8.8:2 pad=hex:` +
		strings.Repeat("00", 100) + `20000000000801010001e041)`, ""}, // no checksum
	{`icmp6 unreachable 1 fd00:1::1 > fd00:1::5 rest=268435456 quote(udp [fd00:1::5]:40000 > [2001:db8::8]:53 pad=hex:` +
		strings.Repeat("00", 80) + `2000dfff)`, ""},

	{`ip proto=136 172.30.0.5 > 8.8.8.8 hex:9c400035000062ef68656c6c6e`, "udp-lite: checksum"},
	{`ip proto=136 172.30.0.5 > 8.8.8.8 hex:9c4000350007a6b968656c6c6f`, "udp-lite: coverage 7"},
	{`ip proto=136 172.30.0.5 > 8.8.8.8 hex:9c400035000ea6b968656c6c6f`, "udp-lite: coverage 14 in 13"},
	{`ip proto=136 172.30.0.5 > 8.8.8.8 hex:9c400035000000006c`, "udp-lite: checksum 0"},
	{`ip proto=136 172.30.0.5 > 8.8.8.8 hex:9c400035000000`, "udp-lite: 7 bytes"},
	{`ip proto=33 172.30.0.5 > 8.8.8.8 hex:9c40003503008e090000000068656c6c6f68656c6c6e`, "dccp: checksum"},
	{`ip proto=33 172.30.0.5 > 8.8.8.8 hex:9c40003502008e090000000068656c6c6f68656c6c6f`, "dccp: header length 8"},
	{`ip proto=33 172.30.0.5 > 8.8.8.8 hex:9c40003503048e090000000068656c6c6f`, "coverage 24 in 17"},
	{`ip proto=33 172.30.0.5 > 8.8.8.8 hex:9c40003503008e09000000`, "dccp: 11 bytes"},
	{`icmp time-exceeded 0 198.51.100.2 > 172.30.0.5 rest=2097152 quote(udp 172.30.0.5:1 > 8.8.8.8:2 pad=hex:` +
		strings.Repeat("00", 100) + `2000feb3000801010001e042)`, "icmp: extensions' checksum"},
	{`icmp time-exceeded 0 198.51.100.2 > 172.30.0.5 rest=2097152 quote(udp 172.30.0.5:1 > 8.8.8.8:2 pad=hex:` +
		strings.Repeat("00", 100) + `10000000)`, "want version 2"},
	{`icmp time-exceeded 0 198.51.100.2 > 172.30.0.5 rest=2097152 quote(udp 172.30.0.5:1 > 8.8.8.8:2 pad=hex:` +
		strings.Repeat("00", 100) + `20000000000901010001e041)`, "icmp: extension object"},
	{`icmp time-exceeded 0 198.51.100.2 > 172.30.0.5 rest=524288 quote(udp 172.30.0.5:1 > 8.8.8.8:2 pad=hex:000000002000dfff)`,
		"icmp: extensions behind 32 quoted bytes"},
	{`udp [fd00:1::5]:40000 > [2001:db8::8]:53 ext=dst:00010500000000 "hello"`, "ipv6: option"},
	{`tcp 172.30.0.5:40000 > 8.8.8.8:80 SYN opt=02000000`, "tcp: option"},
	{`tcp 172.30.0.5:40000 > 8.8.8.8:80 SYN nop nop opt=0205`, "tcp: option"},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 pad=hex:000001 "hello"`, "ethernet: padding is not zero"},
	{`ether type=0x88cc "lldp"`, "ethernet: type"},
	{`ether type=0x0806 hex:0001080006040003`, "arp: 8 bytes"},
	{`ether type=0x0800 hex:4500`, "ipv4: 2 bytes"},
	{`vlan=5 ether type=0x8100 len=1`, "vlan: ends"},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 sum=bad "hello"`, "udp: checksum"},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 ipsum=bad "hello"`, "ipv4: header checksum"},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 ulen=14 "hello"`, "udp: length 14 in 13"},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 ulen=7 "hello"`, "udp: length 7"},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 iplen=19 "hello"`, "ipv4: total length 19"},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 len=5 cut=30`, "ipv4: total length 33"},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 ipopt=83ff0000`, "ipv4: option"},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 pad=33 "hello"`, "33 bytes behind"},
	{`udp [fd00:1::5]:40000 > [2001:db8::8]:53 sum=0 "hello"`, "udp: checksum 0"},
	{`udp [fd00:1::5]:40000 > [2001:db8::8]:53 sum=bad "hello"`, "udp: checksum"},
	{`udp [fd00:1::5]:40000 > [2001:db8::8]:53 ext=dst ext=hop "hello"`, "hop-by-hop options not first"},
	{`udp [fd00:1::5]:40000 > [2001:db8::8]:53 len=5 cut=50`, "ipv6: payload length 13"},
	{`ip proto=60 fd00:1::5 > 2001:db8::8 hex:11020104000000000000`, "extension header 60 of 24 bytes"},
	{`ip proto=17 172.30.0.5 > 8.8.8.8 frag=7:8:more "odd"`, "not the last"},
	{`ip proto=17 172.30.0.5 > 8.8.8.8 frag=7:65528 len=16`, "reaches over 65535"},
	{`ip proto=6 172.30.0.5 > 8.8.8.8 "short"`, "tcp: 5 bytes"},
	{`qinq=1 vlan=2 udp 172.30.0.5:40000 > 8.8.8.8:53 pad=19`, "19 bytes behind"},
	{`udp 172.30.0.5:40000 > 8.8.8.8:53 sum=bad hex:a731`, "udp: checksum"}, // ffff is right
	{`icmp6 unreachable 1 fd00:1::1 > fd00:1::5 quote(ip proto=60 fd00:1::5 > 2001:db8::8 hex:11010104)`, "quoted ipv6: ends inside"},
	{`icmp6 unreachable 1 fd00:1::1 > fd00:1::5 quote(ip proto=60 fd00:1::5 > 2001:db8::8 hex:1101010400000000)`, "quoted ipv6: extension header"},
	{`tcp 172.30.0.5:40000 > 8.8.8.8:80 SYN doff=3`, "tcp: header length 12"},
	{`tcp 172.30.0.5:40000 > 8.8.8.8:80 SYN doff=15`, "tcp: header length 60"},
	{`tcp 172.30.0.5:40000 > 8.8.8.8:80 ACK sum=bad`, "tcp: checksum"},
	{`icmp echo-request 172.30.0.5 > 8.8.8.8 sum=bad`, "icmp: checksum"},
	{`icmp6 echo-request fd00:1::5 > 2001:db8::8 sum=0x0001`, "icmp6: checksum"},
	{`icmp unreachable 1 198.51.100.2 > 172.30.0.5 quote(udp 172.30.0.5:1 > 8.8.8.8:2 ipsum=bad)`, "icmp: quoted ipv4: header checksum"},
	{`icmp unreachable 1 198.51.100.2 > 172.30.0.5 quote(udp 172.30.0.5:1 > 8.8.8.8:2 sum=bad)`, "icmp: quoted udp: checksum"},
	{`icmp unreachable 1 198.51.100.2 > 172.30.0.5 quote(udp 172.30.0.5:1 > 8.8.8.8:2 len=5 cut=26)`, "icmp: quotes 26 bytes"},
	{`icmp unreachable 1 198.51.100.2 > 172.30.0.5 rest=2097152 quote(udp 172.30.0.5:1 > 8.8.8.8:2)`, "quotes 128 bytes by its length"},
	{`icmp6 unreachable 1 fd00:1::1 > fd00:1::5 quote(udp [fd00:1::5]:1 > [2001:db8::8]:2 sum=bad)`, "icmp6: quoted udp: checksum"},
	{`nd solicit fd00:1::5 > fd00:1::1 target=fd00:1::1 ttl=64`, "nd: hop limit 64"},
	{`nd solicit fd00:1::5 > fd00:1::1 target=fd00:1::1 ndopt=0100000000000000`, "nd: option"},
}

func TestCanonical(t *testing.T) {
	for _, c := range canonical {
		line := ether + c.line
		frame, err := Parse(line)
		if err != nil {
			t.Errorf("%s:\n\t%v", line, err)
			continue
		}
		if got := Format(frame); sortedWords(got) != sortedWords(line) {
			t.Errorf("Format(Parse(%s)):\n\t%s", line, got)
		}
		if err := Verify(frame); c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
			t.Errorf("Verify(%s): %v; want %q", line, err, c.fault)
		}
		checkRoundTrip(t, frame)
	}
}

// sortedWords makes lines comparable whose fields differ in order only.
func sortedWords(line string) string {
	words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '(' || r == ')' })
	slices.Sort(words)
	return strings.Join(words, " ")
}

func checkRoundTrip(t *testing.T, frame []byte) {
	t.Helper()
	line := Format(frame)
	got, err := Parse(line)
	if err != nil || !bytes.Equal(got, frame) {
		t.Fatalf("Parse(Format(%x)) = %x, %v; line %s", frame, got, err, line)
	}
}

// TestBytes pins frames byte for byte.
func TestBytes(t *testing.T) {
	for _, c := range []struct{ name, line, hex string }{
		{"a computed UDP checksum of 0", ether + `udp 172.30.0.5:40000 > 8.8.8.8:53 hex:a731`,
			"020000000001020000000005" + "0800" + "4500001e000000004011be9cac1e000508080808" + "9c400035000affffa731"},
		{"raw", "raw 00 0102 ff", "000102ff"},
		{"raw nothing", "raw", ""},
		{"payloads join", ether + `ether type=35020 "a" len=2 hex:ff "b"`, "02000000000102000000000588cc61" + "0000ff62"},
	} {
		frame, err := Parse(c.line)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if got := hex.EncodeToString(frame); got != c.hex {
			t.Errorf("%s:\n\t got %s\n\twant %s", c.name, got, c.hex)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{``, "column 1: end of line: want an Ethernet address, or raw"},
		{`02:00:00:00:00:05`, `column 18: end of line: want ">"`},
		{`02:00:00:00:00:5 > 02:00:00:00:00:01 udp`, "column 1: 02:00:00:00:00:5: want an Ethernet address"},
		{`raw 0`, "column 5: 0: want an even number"},
		{ether, "column 39: end of line: want udp, tcp"},
		{ether + `sctp 1.2.3.4:1 > 1.2.3.4:2`, "column 39: sctp: want udp, tcp"},
		{ether + `vlan=65536 udp`, "vlan=65536: want a number from 0 to 65535"},
		{ether + `udp 1.2.3.4:1 > [::1]:2`, "column 55: [::1]:2: want an address of the family"},
		{ether + `udp 1.2.3.4 > 1.2.3.4:2`, "want ADDRESS:PORT"},
		{ether + `udp [fe80::1%eth0]:1 > [::1]:2`, "want ADDRESS:PORT"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 ttl=256`, "column 65: ttl=256: want a number from 0 to 255"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 ttl=1 ttl=2`, "column 71: ttl=2: no such field here, or given twice"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 flow=1`, "flow=1: no such field"},
		{ether + `udp [::1]:1 > [::2]:2 df`, "df: no such field"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 seq=1`, "seq=1: no such field"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 df=yes`, "want df without a value"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 "hello`, "column 65: \"hello: a quote or a parenthesis is not closed"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 "\q"`, "want a string"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 frag=1:7`, "multiple of 8"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 frag=1`, "want frag=ID:OFFSET"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 frag=1:8`, "write ip proto=17"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 cut=29`, "only 28 bytes"},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 len=65535`, "give iplen="},
		{ether + `udp 1.2.3.4:1 > 1.2.3.4:2 ipopt=` + strings.Repeat("01", 41), "at most 40"},
		{ether + `tcp 1.2.3.4:1 > 1.2.3.4:2`, "want TCP flags"},
		{ether + `tcp 1.2.3.4:1 > 1.2.3.4:2 syn`, "want TCP flags such as"},
		{ether + `tcp 1.2.3.4:1 > 1.2.3.4:2 SYN opt=` + strings.Repeat("01", 41), "at most 40"},
		{ether + `icmp ping 1.2.3.4 > 1.2.3.4`, "want echo-request"},
		{ether + `icmp echo-request ::1 > ::2`, "icmp is IPv4"},
		{ether + `icmp unreachable 1 1.2.3.4 > 1.2.3.4 quote(udp 1.2.3.4:1 > 1.2.3.4:x)`, "column 98: 1.2.3.4:x: want"},
		{ether + `icmp unreachable 1 1.2.3.4 > 1.2.3.4 quote(arp)`, "in quote()"},
		{ether + `arp who-has ::1 tell 1.2.3.4`, "want an IPv4 address"},
		{ether + `arp who-has 1.2.3.4 tell 1.2.3.4 "x"`, "arp has no payload"},
		{ether + `nd solicit ::1 > ::2`, "want target="},
		{ether + `ether "x"`, "want type="},
		{ether + `ip 1.2.3.4 > 1.2.3.4`, "want proto="},
	} {
		frame, err := Parse(c.line)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Parse(%s) = %x, %v; want %q", c.line, frame, err, c.want)
		}
	}
}

// TestMutations turns every bit of every line's frame: the round trip holds, and Verify sees each
// flip that a checksum covers.
func TestMutations(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 7 // each bit of a byte in turn
	}
	for _, c := range canonical {
		frame, err := Parse(ether + c.line)
		if err != nil {
			t.Fatal(err)
		}
		for bit := 0; bit < min(len(frame), 120)*8; bit += step {
			mutant := bytes.Clone(frame)
			mutant[bit/8] ^= 0x80 >> (bit % 8)
			checkRoundTrip(t, mutant)
			if c.line == canonical[0].line && bit >= 14*8 && Verify(mutant) == nil {
				t.Errorf("Verify did not see bit %d of %s flipped: %s", bit, c.line, Format(mutant))
			}
		}
		for n := range min(len(frame), 120) {
			checkRoundTrip(t, frame[:n])
		}
	}
}

func FuzzFormat(f *testing.F) {
	for _, c := range canonical {
		frame, err := Parse(ether + c.line)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		checkRoundTrip(t, frame)
		Verify(frame) // never panics
	})
}

func FuzzParse(f *testing.F) {
	for _, c := range canonical {
		f.Add(ether + c.line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if frame, err := Parse(line); err == nil {
			checkRoundTrip(t, frame)
		}
	})
}

// TestLinux reads frames that a Linux host made (two network namespaces, checksum offload off)
// beside their listing: both say the same, and Verify finds no fault in them.
func TestLinux(t *testing.T) {
	capture, err := os.ReadFile("testdata/linux.pcap")
	if err != nil {
		t.Fatal(err)
	}
	listing, err := os.ReadFile("testdata/linux.txt")
	if err != nil {
		t.Fatal(err)
	}
	records, err := ReadPcap(bytes.NewReader(capture))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(listing)), "\n")
	if len(lines) != len(records) {
		t.Fatalf("%d lines, %d records", len(lines), len(records))
	}
	for i, r := range records {
		if got := Format(r.Frame); got != lines[i] {
			t.Errorf("frame %d:\n\t got %s\n\twant %s", i, got, lines[i])
		}
		if frame, err := Parse(lines[i]); err != nil || !bytes.Equal(frame, r.Frame) {
			t.Errorf("frame %d: Parse(%s) = %x, %v; want %x", i, lines[i], frame, err, r.Frame)
		}
		if err := Verify(r.Frame); err != nil {
			t.Errorf("frame %d: %s: %v", i, lines[i], err)
		}
	}
}

func TestOnesSum(t *testing.T) {
	if got := onesSum([]byte{0x00, 0x01, 0xf2, 0x03}, []byte{0xf4, 0xf5, 0xf6, 0xf7}); got != 0xddf2 { // RFC 1071 §3
		t.Errorf("0x%04x, want 0xddf2", got)
	}
}

// TestRandomLines builds lines with random numbers: each is correct by construction.
func TestRandomLines(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		a, b := fmt.Sprintf("10.%d.%d.%d", r.IntN(256), r.IntN(256), r.IntN(256)), "192.0.2.1"
		port := func(s string) string { return fmt.Sprintf("%s:%d", s, r.IntN(65536)) }
		if r.IntN(2) == 0 {
			a, b = fmt.Sprintf("fd00::%x", r.IntN(65536)), "2001:db8::1"
			port = func(s string) string { return fmt.Sprintf("[%s]:%d", s, r.IntN(65536)) }
		}
		payload := make([]byte, r.IntN(40))
		for i := range payload {
			payload[i] = byte(r.Uint32() >> (8 * r.IntN(4)))
		}
		line := ether + fmt.Sprintf("udp %s > %s ttl=%d hex:%x", port(a), port(b), r.IntN(256), payload)
		if r.IntN(2) == 0 {
			line = ether + fmt.Sprintf("tcp %s > %s SYN seq=%d mss=%d hex:%x", port(a), port(b), r.Uint32(), r.IntN(65536), payload)
		}
		frame, err := Parse(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if err := Verify(frame); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		checkRoundTrip(t, frame)
	}
}
