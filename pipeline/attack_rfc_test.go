// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/header"
	"weir/pipeline/packettext"
)

// What the RFCs ask of all values of a field, tried for all values.

// Every IP protocol, both families, both ways: 1:1 translates its addresses, and what has a
// pseudo-header keeps a right sum; SNAT refuses what has no port (AH, which no translation leaves
// intact, both refuse).
func TestEveryProtocol(t *testing.T) {
	a := newArena(t)
	for proto := range 256 {
		ports := proto == header.ProtocolTCP || proto == header.ProtocolUDP
		for _, f := range []struct {
			v6               bool
			one, shared, out string
			address          string
		}{
			{false, "10.0.0.5", "10.0.0.6", "8.8.8.8", "192.0.2.5"},
			{true, "fd00::5", "fd00::6", "2001:4860::8", "2001:db8:1::5"},
		} {
			extension := f.v6 && strings.Contains(" 0 43 44 60 135 139 140 253 254 ", fmt.Sprintf(" %d ", proto))
			if ports || proto == header.ProtocolICMP && !f.v6 || proto == header.ProtocolICMPv6 && f.v6 || extension {
				continue // M-5, M-10, M-19
			}
			payload := []byte{9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
			build := func(port int, src, dst string) []byte {
				switch proto { // right sums, so that the verifier looks at what leaves
				case header.ProtocolUDPLite:
					payload[4], payload[5] = 0, 0
				case header.ProtocolDCCP:
					payload[4], payload[5] = 3, 0
				}
				frame := ip4
				if f.v6 {
					return summed(ip6(port, byte(proto), src, dst, payload), byte(proto), 54)
				}
				return summed(frame(port, byte(proto), src, dst, nil, payload), byte(proto), 34)
			}
			out := a.process(0, build(0, f.one, f.out))[0]
			back := a.process(1, build(1, f.out, f.address))[0]
			if proto == header.ProtocolAH {
				if out.port >= 0 || back.port >= 0 {
					t.Errorf("protocol %d passes 1:1", proto)
				}
			} else if out.port != 1 || back.port != 0 || !bytes.HasSuffix(out.frame, payload[8:]) || !bytes.HasSuffix(back.frame, payload[8:]) {
				t.Errorf("protocol %d, 1:1, IPv6 %t: leaves by %d and comes back by %d", proto, f.v6, out.port, back.port)
			} else {
				from, _ := addresses(out.frame)
				_, to := addresses(back.frame)
				if from.String() != f.address || to.String() != f.one {
					t.Errorf("protocol %d, 1:1, IPv6 %t: leaves from %v and comes back to %v", proto, f.v6, from, to)
				}
			}
			a.refused(0, build(0, f.shared, f.out), drop.SNATProtocol, drop.Untranslatable, drop.BadExtension)
			a.refused(1, build(1, f.out, strings.Replace(strings.Replace(f.address, "0.2.5", "0.2.6", 1), "1::5", "1::6", 1)), drop.Unsolicited, drop.BadExtension)
		}
	}
	a.restart()
	a.rule(0)
}

// summed writes the sum of a protocol with a pseudo-header at byte 6 of its header, and leaves
// other protocols alone.
func summed(frame []byte, proto byte, at int) []byte {
	if proto != header.ProtocolUDPLite && proto != header.ProtocolDCCP {
		return frame
	}
	frame[at+6], frame[at+7] = 0, 0
	sum := len(frame) - at + int(proto)
	addresses := frame[26:34]
	if at == 54 {
		addresses = frame[22:54]
	}
	for _, b := range [][]byte{addresses, frame[at:]} {
		for i := 0; i < len(b); i += 2 {
			sum += int(b[i])<<8 + int(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(frame[at+6:], ^uint16(sum))
	return frame
}

// Every value of DSCP and ECN passes unchanged, both ways, both families, 1:1 and SNAT.
func TestEveryTrafficClass(t *testing.T) {
	a := newArena(t)
	for tos := range 256 {
		for _, line := range []string{"udp 10.0.0.5:1000 > 8.8.8.8:53 df tos=%d", "udp 10.0.0.6:1000 > 8.8.8.8:53 df tos=%d",
			"udp [fd00::5]:1000 > [2001:4860::8]:53 flow=5 tos=%d", "udp [fd00::6]:1000 > [2001:4860::8]:53 flow=5 tos=%d"} {
			left := a.through(0, 1, parseLine(t, 0, fmt.Sprintf(line, tos)))
			arrived := a.through(1, 0, mirror(t, left))
			for _, f := range [][]byte{left, arrived} {
				got := int(f[15])
				if f[12] == 0x86 {
					got = int(binary.BigEndian.Uint16(f[14:]) >> 4 & 0xff)
				}
				if got != tos {
					t.Fatalf("traffic class %d becomes %d: %s", tos, got, packettext.Format(f))
				}
			}
		}
	}
	a.rule(4)
}

// Every TTL, both ways, both families: 0 and 1 end here, others lose one.
func TestEveryTTL(t *testing.T) {
	a := newArena(t)
	for ttl := range 256 {
		for _, c := range []struct {
			port int
			line string
			at   int
		}{
			{0, "udp 10.0.0.5:1000 > 8.8.8.8:53 ttl=%d", 22}, {0, "udp 10.0.0.6:1000 > 8.8.8.8:53 ttl=%d", 22}, {0, "udp [fd00::5]:1000 > [2001:4860::8]:53 ttl=%d", 21},
			{0, "udp 10.0.0.5:1000 > 10.0.0.6:53 ttl=%d", 22}, {0, "udp 203.0.113.17:1000 > 8.8.8.8:53 ttl=%d", 22},
			{1, "udp 8.8.8.8:53 > 192.0.2.5:1000 ttl=%d", 22}, {1, "udp [2001:4860::8]:53 > [2001:db8:1::5]:1000 ttl=%d", 21}, {1, "udp 8.8.8.8:53 > 203.0.113.17:1000 ttl=%d", 22},
		} {
			f := parseLine(t, c.port, fmt.Sprintf(c.line, ttl))
			if ttl <= 1 {
				a.refused(c.port, f, drop.TTLExceeded)
			} else if got := a.process(c.port, f)[0]; got.port < 0 || int(got.frame[c.at]) != ttl-1 {
				t.Fatalf(c.line+": leaves by port %d", ttl, got.port)
			}
		}
	}
	a.rule(3)
}

// Paired pooling (RFC 4787 REQ-2, RFC 6888 REQ-2): whatever an instance with SNAT entries on four
// addresses begins, in whatever protocol, is seen from one of them; and other instances are seen
// from the others.
func TestPairedPooling(t *testing.T) {
	var instances strings.Builder
	for i := range 64 {
		fmt.Fprintf(&instances, "      - {name: i%d, addresses: [10.0.1.%d], mac: \"02:00:00:00:01:05\", external: {snat: [", i, i)
		for k := range 4 {
			fmt.Fprintf(&instances, "{address: 192.0.2.%d, ports: %d-%d}, ", 100+k, 1024+1000*i, 2023+1000*i)
		}
		instances.WriteString("]}}\n")
	}
	r := newRig(t, rigConfig+instances.String(), config.MAC{})
	seen := map[string]int{}
	for i := range 64 {
		sources := map[string]bool{}
		for n := range 500 {
			line := []string{"udp 10.0.1.%d:%d > 8.8.%d.8:53", "tcp 10.0.1.%d:%d > 8.8.%d.8:53 SYN", "icmp echo-request 10.0.1.%[1]d > 8.8.%[3]d.8 id=%[2]d"}[n%3]
			f := r.process(0, parseLine(t, 0, fmt.Sprintf(line, i, 1000+n/50, n%50)))[0]
			if f.port != 1 {
				t.Fatalf(line+" does not leave", i, 1000+n, n&255)
			}
			sources[fmt.Sprint(f.frame[26:30])] = true
		}
		if len(sources) != 1 {
			t.Fatalf("instance %d is seen from %d addresses", i, len(sources))
		}
		for s := range sources {
			seen[s]++
		}
		r.forget()
	}
	if len(seen) != 4 {
		t.Errorf("64 instances use %d of 4 addresses: %v", len(seen), seen)
	}
}

// No application gateway (RFC 4787 REQ-10, RFC 5382 REQ-6): addresses and ports in payloads stay
// what they are, on the ports of the protocols that others change.
func TestNoALG(t *testing.T) {
	a := newArena(t)
	payloads := []string{
		"PORT 10,0,0,5,4,1\r\n", "227 Entering Passive Mode (10,0,0,5,4,1)\r\n", "EPRT |1|10.0.0.5|1025|\r\n",
		"INVITE sip:x@8.8.8.8 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.5:1000\r\nContact: <sip:x@10.0.0.5:1000>\r\n\r\nc=IN IP4 10.0.0.5\r\nm=audio 1025 RTP/AVP 0\r\n",
		"\x00\x01file\x00octet\x00", "SETUP rtsp://8.8.8.8/ RTSP/1.0\r\nTransport: RTP/AVP;client_port=1025-1026\r\n\r\n", "PRIVMSG x :\x01DCC CHAT chat 167772165 1025\x01\r\n",
		"\x03\x00\x00\x10\x0a\x00\x00\x05\x04\x01", "\x0a\x00\x00\x05",
	}
	for _, port := range []int{21, 53, 69, 135, 161, 554, 1719, 1720, 1723, 5060, 5061, 6667} {
		for _, payload := range payloads {
			for _, line := range []string{"udp 10.0.0.5:1000 > 8.8.8.8:%d %q", "udp 10.0.0.6:1000 > 8.8.8.8:%d %q", "tcp 10.0.0.6:1000 > 8.8.8.8:%d SYN %q", "tcp [fd00::6]:1000 > [2001:4860::8]:%d SYN %q"} {
				left := a.through(0, 1, parseLine(t, 0, fmt.Sprintf(line, port, payload)))
				if !bytes.HasSuffix(left, []byte(payload)) {
					t.Fatalf("port %d: %q leaves as %s", port, payload, packettext.Format(left))
				}
				if back := a.through(1, 0, mirror(t, left)); !bytes.HasSuffix(back, []byte(payload)) {
					t.Fatalf("port %d: %q comes back as %s", port, payload, packettext.Format(back))
				}
			}
		}
	}
	a.rule(12 * 4)
}
