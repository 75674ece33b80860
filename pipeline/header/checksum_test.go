// SPDX-License-Identifier: Apache-2.0

package header

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// slowSum is RFC 1071 to the letter: 16-bit words, a zero byte behind an odd end, carries back at
// the other end.
func slowSum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		if sum += word; sum > 0xffff {
			sum = sum - 0x10000 + 1
		}
	}
	return uint16(sum)
}

// randomBytes are often all zeros, all ones or a mixture of both: there checksums go wrong.
func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	kind := r.IntN(4)
	for i := range b {
		b[i] = [4]byte{0, 0xff, byte(-r.IntN(2)), byte(r.Uint32())}[kind]
	}
	return b
}

func TestChecksum(t *testing.T) {
	if got := Checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0); got != 0xddf2 { // RFC 1071 §3
		t.Errorf("0x%04x, want 0xddf2", got)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for n := range 200 {
		for range 50 {
			b := randomBytes(r, n+8)
			initial := binary.BigEndian.Uint16(randomBytes(r, 2))
			b = b[r.IntN(8):][:n] // any alignment
			want := slowSum(append(binary.BigEndian.AppendUint16(nil, initial), b...))
			if got := Checksum(b, initial); got != want {
				t.Fatalf("Checksum(%x, 0x%04x) = 0x%04x, want 0x%04x", b, initial, got, want)
			}
			if got := Combine(initial, slowSum(b)); got != want {
				t.Fatalf("Combine(0x%04x, 0x%04x) = 0x%04x, want 0x%04x", initial, slowSum(b), got, want)
			}
		}
	}
	full := bytes.Repeat([]byte{0xff}, 1<<16)
	if got := Checksum(full, 0xffff); got != 0xffff {
		t.Errorf("64 KiB of ones: 0x%04x", got)
	}
}

func TestPseudoHeader(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		for _, size := range []int{4, 16} {
			addrs, proto, length := randomBytes(r, 2*size), uint8(r.Uint32()), r.IntN(1<<16)
			wire := append(bytes.Clone(addrs), 0, 0, 0, proto)
			wire = binary.BigEndian.AppendUint32(wire, uint32(length))
			if got, want := PseudoHeader(addrs[:size], addrs[size:], proto, length), slowSum(wire); got != want {
				t.Fatalf("PseudoHeader(%x, %d, %d) = 0x%04x, want 0x%04x", addrs, proto, length, got, want)
			}
		}
	}
}

// RFC 1624 §4 has the case in which eqn. 2 fails.
func TestDeltaRFC1624(t *testing.T) {
	if got := Delta(0).Replace16(0x5555, 0x3285).Apply(0xdd2f); got != 0x0000 {
		t.Errorf("0x%04x, want 0x0000", got)
	}
}

// TestDeltaCarries has every sum of words at the edges.
func TestDeltaCarries(t *testing.T) {
	edges := []uint16{0, 1, 2, 0x7fff, 0x8000, 0xfffd, 0xfffe, 0xffff}
	for _, d := range edges {
		for _, old := range edges {
			for _, new := range edges {
				words := func(v ...uint16) (b []byte) {
					for _, w := range v {
						b = binary.BigEndian.AppendUint16(b, w)
					}
					return b
				}
				if got, want := Delta(d).Replace16(old, new), slowSum(words(d, ^old, new)); uint16(got) != want {
					t.Errorf("0x%04x.Replace16(0x%04x, 0x%04x) = 0x%04x, want 0x%04x", d, old, new, got, want)
				}
				old32, new32 := uint32(old)<<16|uint32(new), uint32(new)<<16|uint32(d)
				if got, want := Delta(d).Replace32(old32, new32), slowSum(words(d, ^old, ^new, new, d)); uint16(got) != want {
					t.Errorf("0x%04x.Replace32(0x%08x, 0x%08x) = 0x%04x, want 0x%04x", d, old32, new32, got, want)
				}
				if got, want := Delta(d).Add(Delta(old)), slowSum(words(d, old)); uint16(got) != want {
					t.Errorf("0x%04x.Add(0x%04x) = 0x%04x, want 0x%04x", d, old, got, want)
				}
			}
		}
	}
}

// rewrite replaces a field of message, outside its checksum, and returns the Delta.
func rewrite(r *rand.Rand, message []byte, checksumAt int) Delta {
	d := Delta(0)
	for range 1 + r.IntN(4) {
		size := []int{2, 2, 4, 16}[r.IntN(4)]
		at := r.IntN(len(message) - size + 1)
		odd := at%2 == 1
		if odd && size != 2 {
			at, odd = at-1, false
		}
		if at < checksumAt+2 && at+size > checksumAt {
			continue
		}
		field, value := message[at:at+size], randomBytes(r, size)
		switch {
		case odd:
			d = d.ReplaceOdd16(get16(field), get16(value))
		case size == 2:
			d = d.Replace16(get16(field), get16(value))
		case size == 4:
			d = d.Replace32(get32(field), get32(value))
		case size == 16:
			d = d.Replace128((*[16]byte)(field), (*[16]byte)(value))
		}
		copy(field, value)
	}
	return d
}

// transports are the ways in which a checksum is written. prefix stands for what is summed besides
// the message.
var transports = []struct {
	name   string
	prefix byte // the protocol in the pseudo-header
	apply  func(Delta, uint16) uint16
	full   func(uint16) uint16 // the field for a sum
}{
	{"TCP, IPv4, ICMPv6", 6, Delta.Apply, func(sum uint16) uint16 { return ^sum }},
	{"UDP", 17, Delta.ApplyUDP, notZero},
	{"ICMPv4", 0, Delta.ApplyICMP, notZero},
}

func notZero(sum uint16) uint16 {
	if sum == 0xffff {
		return 0xffff
	}
	return ^sum
}

const checksumAt = 6

func checkDelta(t *testing.T, r *rand.Rand) {
	t.Helper()
	original := randomBytes(r, 2*(20+r.IntN(4)))
	for _, tr := range transports {
		sum := func(m []byte) uint16 { return slowSum(append([]byte{0, tr.prefix}, m...)) }
		message := bytes.Clone(original)
		put16(message[checksumAt:], 0)
		right := tr.full(sum(message))
		put16(message[checksumAt:], right)

		before := bytes.Clone(message)
		d := rewrite(r, message, checksumAt)
		got := tr.apply(d, right)
		put16(message[checksumAt:], 0)
		want := tr.full(sum(message))
		if got != want {
			t.Fatalf("%s: %x -> %x: incremental 0x%04x, from scratch 0x%04x", tr.name, before, message, got, want)
		}
		put16(message[checksumAt:], got)
		if s := sum(message); s != 0xffff {
			t.Fatalf("%s: a receiver refuses %x: sum 0x%04x", tr.name, message, s)
		}
		if back := tr.apply(d.Invert(), got); back != right {
			t.Fatalf("%s: undone 0x%04x, want 0x%04x", tr.name, back, right)
		}

		// A wrong checksum stays wrong, by the same difference (numbers modulo 0xffff).
		wrong := uint16(r.Uint32())
		if tr.name == "UDP" && wrong == 0 {
			continue
		}
		after := tr.apply(d, wrong)
		if x, y := (uint32(wrong)+0xffff-uint32(right))%0xffff, (uint32(after)+0xffff-uint32(got))%0xffff; x != y {
			t.Fatalf("%s: wrong by 0x%04x before and 0x%04x after", tr.name, x, y)
		}
	}
}

func TestDelta(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	rounds := 100_000
	if testing.Short() {
		rounds = 10_000
	}
	for range rounds {
		checkDelta(t, r)
	}
}

func FuzzDelta(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) { checkDelta(t, rand.New(rand.NewPCG(a, b))) })
}

// TestDeltaZeros has the messages whose sums are zero, where only one of 0x0000 and 0xffff is
// accepted.
func TestDeltaZeros(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uint16
	}{
		{"UDP without a checksum has none afterwards", Delta(0).Replace16(1, 2).ApplyUDP(0), 0},
		{"UDP 0xffff unchanged", Delta(0).ApplyUDP(0xffff), 0xffff},
		{"UDP 0xffff there and back", Delta(0).Replace16(1, 2).Replace16(2, 1).ApplyUDP(0xffff), 0xffff},
		{"TCP 0 stays the right 0", Delta(0).ApplyUDP(0), 0},
		{"an echo reply becomes all zeros", Delta(0).Replace16(7, 0).ApplyICMP(^uint16(7)), 0xffff},
		{"an echo reply was all zeros", Delta(0).Replace16(0, 7).ApplyICMP(0xffff), ^uint16(7)},
		{"0xffff for 0 is no change", Delta(0).Replace16(0, 0xffff).Apply(0x1234), 0x1234},
		{"0 for 0xffff is no change", Delta(0).Replace16(0xffff, 0).Apply(0x1234), 0x1234},
	} {
		if c.got != c.want {
			t.Errorf("%s: 0x%04x, want 0x%04x", c.name, c.got, c.want)
		}
	}
}

var sink uint16

func BenchmarkChecksum(b *testing.B) {
	for _, n := range []int{20, 64, 1500} {
		data := make([]byte, n)
		b.Run(map[int]string{20: "20", 64: "64", 1500: "1500"}[n], func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				sink = Checksum(data, sink)
			}
		})
	}
}

func BenchmarkDelta(b *testing.B) {
	for b.Loop() {
		d := Delta(0).Replace32(0xac1e0005, uint32(sink)).Replace16(40000, 1024)
		sink = d.ApplyUDP(sink | 1)
	}
}
