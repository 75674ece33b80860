// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"weir/config"
	"weir/pipeline/header"
	"weir/pipeline/packettext"
)

// sample says how to make a packet that is to be translated and back.
type sample struct {
	kind         uint8 // index of sampleKinds
	six, shared  bool  // IPv6; through SNAT
	extra        uint8 // options or extension headers
	sport, dport uint16
	payload      []byte
	sum          uint8 // index of sampleSums
}

var sampleKinds = []string{"tcp", "udp", "ping", "lite", "dccp", "gre", "sctp"}

const (
	sumRight = iota
	sumWrong
	sumNone  // UDP over IPv4: 0
	sumZero  // the right checksum is 0 before the translation
	sumZero2 // and after it
	numSums
)

// frame builds the packet, from inside.
func (s sample) frame(t testing.TB) []byte {
	src, dst := netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("8.8.8.8")
	extra := []string{"", " ipopt=01010101", " ipopt=0703040000000000", " tos=184 ipid=0x1234 df"}[s.extra%4]
	icmp := "icmp"
	if s.six {
		src, dst = netip.MustParseAddr("fd00::5"), netip.MustParseAddr("2001:4860:4860::8888")
		extra = []string{"", " ext=dst:00010400000000", " ext=hop:00010400000000 ext=dst:00010400000000", " tos=184 flow=0x12345"}[s.extra%4]
		icmp = "icmp6"
	}
	if s.shared {
		src = src.Next()
	}
	data := fmt.Sprintf(" hex:%x", s.payload)
	if len(s.payload) == 0 {
		data = ""
	}
	from, to := netip.AddrPortFrom(src, s.sport), netip.AddrPortFrom(dst, s.dport)
	switch kind := sampleKinds[s.kind]; kind {
	case "tcp":
		return parseLine(t, 0, fmt.Sprintf("tcp %v > %v SYN mss=1460 seq=%d%s%s", from, to, s.sport, extra, data))
	case "udp":
		return parseLine(t, 0, fmt.Sprintf("udp %v > %v%s%s", from, to, extra, data))
	case "ping":
		return parseLine(t, 0, fmt.Sprintf("%s echo-request %v > %v id=%d seq=%d%s%s", icmp, src, dst, s.sport, s.dport, extra, data))
	case "lite", "dccp":
		proto := map[string]byte{"lite": 136, "dccp": 33}[kind]
		b := binary.BigEndian.AppendUint16(nil, s.sport)
		b = binary.BigEndian.AppendUint16(b, s.dport)
		b = append(b, 0, 0, 0, 0) // covers all; checksum
		if kind == "dccp" {
			b[4] = 3 // words of header
			b = append(b, 0, 0, 0, 0)
		}
		b = append(b, s.payload...)
		binary.BigEndian.PutUint16(b[6:], ^slowSum(src, dst, proto, b))
		return parseLine(t, 0, fmt.Sprintf("ip proto=%d %v > %v%s hex:%x", proto, src, dst, extra, b))
	case "gre":
		return parseLine(t, 0, fmt.Sprintf("ip proto=47 %v > %v%s%s", src, dst, extra, data))
	}
	return parseLine(t, 0, fmt.Sprintf("ip proto=132 %v > %v%s%s", src, dst, extra, data)) // SCTP: a CRC without addresses
}

// slowSum is the one's complement sum of pseudo-header and data, a word at a time.
func slowSum(src, dst netip.Addr, proto byte, data []byte) uint16 {
	all := bytes.Join([][]byte{src.AsSlice(), dst.AsSlice(), {0, proto, byte(len(data) >> 8), byte(len(data))}, data, {0}}, nil)
	sum := 0
	for i := 0; i+1 < len(all); i += 2 {
		if sum += int(all[i])<<8 | int(all[i+1]); sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}

// parts are where the transport and its checksum are in a frame.
func (s sample) parts(frame []byte) (transport, sum int) {
	transport = header.EthernetSize + int(frame[header.EthernetSize]&15)*4
	if s.six {
		chain, _ := header.IPv6(frame[header.EthernetSize:]).Walk()
		transport = header.EthernetSize + chain.Offset
	}
	return transport, transport + map[string]int{"tcp": 16, "udp": 6, "ping": 2, "lite": 6, "dccp": 6, "gre": -1, "sctp": -1}[sampleKinds[s.kind]]
}

// intact reports whether all checksums of a frame are right, recomputed from nothing.
func intact(frame []byte) bool { return packettext.Verify(frame) == nil }

// move takes x from the checksum and adds it to the first word of the payload, which changes
// nothing about whether it is right.
func (s sample) move(frame []byte, x uint16) {
	transport, sum := s.parts(frame)
	word := transport + map[string]int{"tcp": 24, "udp": 8, "ping": 8, "lite": 8, "dccp": 8}[sampleKinds[s.kind]]
	binary.BigEndian.PutUint16(frame[word:], header.Combine(binary.BigEndian.Uint16(frame[word:]), x))
	n := header.Combine(binary.BigEndian.Uint16(frame[sum:]), ^x)
	if n == 0xffff {
		n = 0
	}
	if kind := sampleKinds[s.kind]; n == 0 && (kind == "udp" || kind == "lite") {
		n = 0xffff
	}
	binary.BigEndian.PutUint16(frame[sum:], n)
}

// mirror makes the answer of a packet: addresses and ports change places, a request becomes a
// reply. Twice is nothing.
func (s sample) mirror(frame []byte) []byte {
	b := bytes.Clone(frame)
	swap := func(at, other, n int) {
		x := bytes.Clone(b[at : at+n])
		copy(b[at:at+n], b[other:other+n])
		copy(b[other:other+n], x)
	}
	transport, sum := s.parts(b)
	if s.six {
		swap(header.EthernetSize+8, header.EthernetSize+24, 16)
	} else {
		swap(header.EthernetSize+12, header.EthernetSize+16, 4)
	}
	switch sampleKinds[s.kind] {
	case "tcp", "udp", "lite", "dccp":
		swap(transport, transport+2, 2)
	case "ping":
		old := binary.BigEndian.Uint16(b[transport:])
		b[transport] ^= 8 // 8 and 0
		if s.six {
			b[transport] ^= 8 ^ 1 // 128 and 129
		}
		d := header.Delta(0).Replace16(old, binary.BigEndian.Uint16(b[transport:]))
		binary.BigEndian.PutUint16(b[sum:], d.ApplyICMP(binary.BigEndian.Uint16(b[sum:])))
	}
	return b
}

// checkTranslation holds the properties: out and back is the identity but for TTL and header
// checksum, what was right is right at both ends, what was wrong stays wrong.
func checkTranslation(t testing.TB, r *rig, s sample) {
	kind := sampleKinds[s.kind]
	if s.shared && s.kind > 2 || kind == "gre" && !s.six && len(s.payload) == 0 {
		return
	}
	frame := s.frame(t)
	_, sum := s.parts(frame)
	covered := kind != "gre" && kind != "sctp"
	out := func(f []byte) []byte {
		t.Helper()
		port, mac := 0, byte(1)
		if f[5] == 0xfe {
			port, mac = 1, 2
		}
		f = bytes.Clone(f)
		copy(f, []byte{2, 0, 0, 0, 0, mac, 2, 0, 0, 0, 1, 9})
		got := r.process(port, f)[0]
		if got.port != 1-port {
			t.Fatalf("did not pass: %s: %v", packettext.Format(f), r.counters.Dropped)
		}
		return got.frame
	}
	switch {
	case !covered || s.sum == sumRight:
	case s.sum == sumWrong:
		frame[sum] ^= 0x55
		if kind == "udp" && frame[sum] == 0 && frame[sum+1] == 0 {
			return
		}
	case s.sum == sumNone && kind == "udp" && !s.six:
		frame[sum], frame[sum+1] = 0, 0
	case len(s.payload) < 2:
	case s.sum == sumZero:
		s.move(frame, binary.BigEndian.Uint16(frame[sum:]))
	case s.sum == sumZero2:
		// A session fixes what the translation adds: try, and take what came out.
		s.move(frame, binary.BigEndian.Uint16(out(frame)[sum:]))
	}
	right := intact(frame)
	if right != (s.sum != sumWrong || !covered) {
		t.Fatalf("sample %+v is intact: %t\n%s", s, right, packettext.Format(frame))
	}
	there := out(frame)
	if intact(there) != right {
		t.Fatalf("%+v\nin  %s\nout %s\nintact %t, want %t", s, packettext.Format(frame), packettext.Format(there), !right, right)
	}
	answer := s.mirror(there)
	answer[5] = 0xfe
	back := s.mirror(out(answer))
	if intact(back) != right {
		t.Fatalf("%+v\nin   %s\nback %s\nintact %t, want %t", s, packettext.Format(frame), packettext.Format(back), !right, right)
	}
	copy(back, frame[:12])
	if s.six {
		back[header.EthernetSize+7] += 2
	} else {
		back[header.EthernetSize+8] += 2
		copy(back[header.EthernetSize+10:], frame[header.EthernetSize+10:header.EthernetSize+12])
		if s.shared {
			copy(back[header.EthernetSize+4:], frame[header.EthernetSize+4:header.EthernetSize+6]) // SNAT chooses the identification
		}
	}
	if covered && isZero(back[sum:]) && isZero(frame[sum:]) {
		copy(back[sum:], frame[sum:sum+2]) // 0 and 0xffff are one number
	}
	if !bytes.Equal(back, frame) {
		t.Fatalf("%+v\nin   %x\nback %x", s, frame, back)
	}
}

func isZero(sum []byte) bool { return sum[0] == sum[1] && sum[0]+1 <= 1 }

func (s sample) fit() sample {
	s.kind %= uint8(len(sampleKinds))
	s.sum %= numSums
	if len(s.payload) > 1300 {
		s.payload = s.payload[:1300]
	}
	return s
}

// unclampedConfig leaves TCP options alone: what comes back has to be what went.
var unclampedConfig = strings.Replace(rigConfig, "vpcs:", "sessions: {mss_clamp: off}\nvpcs:", 1)

func TestTranslation(t *testing.T) {
	r := newRig(t, unclampedConfig, config.MAC{})
	rnd := rand.New(rand.NewPCG(3, 3))
	n := 40_000
	if testing.Short() {
		n = 4_000
	}
	for i := range n {
		if i%1000 == 0 {
			r.forget()
		}
		s := sample{
			kind: uint8(rnd.Uint32()), six: rnd.IntN(2) == 0, shared: rnd.IntN(2) == 0, extra: uint8(rnd.Uint32()),
			sport: uint16(rnd.Uint32()), dport: uint16(rnd.Uint32()), sum: uint8(rnd.IntN(numSums)),
			payload: make([]byte, rnd.IntN(40)),
		}
		for j := range s.payload {
			s.payload[j] = byte(rnd.Uint32())
		}
		checkTranslation(t, r, s.fit())
	}
}

func FuzzTranslation(f *testing.F) {
	for kind := range uint8(7) {
		for sum := range uint8(numSums) {
			f.Add(kind, sum&1 == 0, kind&1 == 0, kind, uint16(1000), uint16(53), []byte("payload"), sum)
			f.Add(kind, sum&1 == 1, true, kind, uint16(0), uint16(0xffff), []byte{0xff, 0xff}, sum)
		}
	}
	r := newRig(f, unclampedConfig, config.MAC{})
	f.Fuzz(func(t *testing.T, kind uint8, six, shared bool, extra uint8, sport, dport uint16, payload []byte, sum uint8) {
		r.t = t
		r.forget()
		checkTranslation(t, r, sample{kind, six, shared, extra, sport, dport, payload, sum}.fit())
	})
}
