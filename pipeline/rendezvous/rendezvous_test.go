// SPDX-License-Identifier: Apache-2.0

package rendezvous

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"weir/config"
	"weir/pipeline/inet"
)

// The vectors of the SipHash paper's reference code: key 00 01 .. 0f, message 00 01 .. of each
// length, output bytes.
func TestSipHashReference(t *testing.T) {
	key := make([]byte, 16)
	for i := range key {
		key[i] = byte(i)
	}
	k0, k1 := binary.LittleEndian.Uint64(key), binary.LittleEndian.Uint64(key[8:])
	for _, v := range []struct {
		length int
		out    [8]byte
	}{
		{0, [8]byte{0x31, 0x0e, 0x0e, 0xdd, 0x47, 0xdb, 0x6f, 0x72}},
		{1, [8]byte{0xfd, 0x67, 0xdc, 0x93, 0xc5, 0x39, 0xf8, 0x74}},
		{2, [8]byte{0x5a, 0x4f, 0xa9, 0xd9, 0x09, 0x80, 0x6c, 0x0d}},
		{3, [8]byte{0x2d, 0x7e, 0xfb, 0xd7, 0x96, 0x66, 0x67, 0x85}},
		{7, [8]byte{0x37, 0xd1, 0x01, 0x8b, 0xf5, 0x00, 0x02, 0xab}},
		{8, [8]byte{0x62, 0x24, 0x93, 0x9a, 0x79, 0xf5, 0xf5, 0x93}},
		{15, [8]byte{0xe5, 0x45, 0xbe, 0x49, 0x61, 0xca, 0x29, 0xa1}}, // the paper's example, appendix A
	} {
		m := make([]byte, v.length)
		for i := range m {
			m[i] = byte(i)
		}
		if got, want := SipHash24(k0, k1, m), binary.LittleEndian.Uint64(v.out[:]); got != want {
			t.Errorf("%d bytes: %016x, want %016x", v.length, got, want)
		}
	}
}

// The numbers in docs/rendezvous.md are what this program computes.
func TestPublishedVectors(t *testing.T) {
	text, err := os.ReadFile("../../docs/rendezvous.md")
	if err != nil {
		t.Fatal(err)
	}
	spreads := map[string]config.Spread{"flow": config.SpreadFlow, "endpoint": config.SpreadEndpoint, "instance": config.SpreadInstance}
	rows := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) != 8 {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		spread, ok := spreads[cells[1]]
		if !ok {
			continue // a heading
		}
		rows++
		proto, err := strconv.ParseUint(cells[2], 10, 8)
		if err != nil {
			t.Fatal(err)
		}
		private, remote := netip.MustParseAddrPort(cells[3]), netip.MustParseAddrPort(cells[4])
		f := Flow{uint8(proto), inet.FromNetip(private.Addr()), inet.FromNetip(remote.Addr()), private.Port(), remote.Port()}
		w := Weight(&f, spread, inet.FromNetip(netip.MustParseAddr(cells[5])))
		if got := strconv.FormatUint(w, 16); strings.Repeat("0", 16-len(got))+got != cells[6] {
			t.Errorf("%s\nis %016x", line, w)
		}
	}
	if rows != 16 {
		t.Errorf("%d vectors in the document, want 16", rows)
	}
}

func randomFlow(r *rand.Rand) Flow {
	return Flow{6, inet.Addr{Lo: 0xffff_0a00_0005}, inet.Addr{Lo: 0xffff_0000_0000 | r.Uint64N(1<<32)}, uint16(r.Uint32()), 443}
}

// winner is the candidate of most weight, by the loop that docs/rendezvous.md describes.
func winner(f *Flow, spread config.Spread, candidates []inet.Addr) int {
	best := 0
	for i, c := range candidates {
		if Weight(f, spread, c) > Weight(f, spread, candidates[best]) {
			best = i
		}
	}
	return best
}

func someCandidates(n int) (list []inet.Addr) {
	for i := range n {
		list = append(list, inet.Addr{Lo: 0xffff_c000_0200 + uint64(i)})
	}
	return list
}

// Each of n candidates gets its share of many flows, within 2 % of all.
func TestRendezvousBalance(t *testing.T) {
	flows := 100_000
	if testing.Short() {
		flows = 20_000
	}
	r := rand.New(rand.NewPCG(1, 1))
	for n := 2; n <= 8; n++ {
		candidates := someCandidates(n)
		share := make([]int, n)
		for range flows {
			f := randomFlow(r)
			share[winner(&f, config.SpreadFlow, candidates)]++
		}
		for i, got := range share {
			if off := got - flows/n; off > flows/50 || -off > flows/50 {
				t.Errorf("candidate %d of %d has %d of %d flows", i, n, got, flows)
			}
		}
	}
}

// A candidate that is added takes flows and moves no other; one that goes gives its own away and
// moves no other.
func TestRendezvousMovesOnlyWhatMustMove(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 1))
	for n := 1; n <= 8; n++ {
		candidates := someCandidates(n + 1)
		added := 0
		for range 10_000 {
			f := randomFlow(r)
			before, after := winner(&f, config.SpreadFlow, candidates[:n]), winner(&f, config.SpreadFlow, candidates)
			switch {
			case after == n:
				added++
			case after != before:
				t.Fatalf("%d candidates and one more: a flow moves from %d to %d", n, before, after)
			}
		}
		if want := 10_000 / (n + 1); added < want*8/10 || added > want*12/10 {
			t.Errorf("candidate %d took %d of 10000 flows, want about %d", n, added, want)
		}
	}
}

// What spread leaves out does not matter, and what it takes in does.
func TestRendezvousSpread(t *testing.T) {
	base := Flow{6, inet.Addr{Lo: 0xffff_0a00_0005}, inet.Addr{Lo: 0xffff_0808_0808}, 40000, 443}
	change := map[string]func(*Flow){
		"protocol":     func(f *Flow) { f.Proto = 17 },
		"private":      func(f *Flow) { f.Private.Lo++ },
		"private port": func(f *Flow) { f.PrivatePort++ },
		"remote":       func(f *Flow) { f.Remote.Lo++ },
		"remote port":  func(f *Flow) { f.RemotePort++ },
	}
	hashed := map[config.Spread]string{
		config.SpreadFlow:     "protocol, private, private port, remote, remote port",
		config.SpreadEndpoint: "protocol, private, private port",
		config.SpreadInstance: "private",
	}
	c := someCandidates(1)[0]
	for spread, parts := range hashed {
		for what, f := range change {
			x := base
			f(&x)
			want := false
			for _, p := range strings.Split(parts, ", ") {
				want = want || p == what
			}
			if got := Weight(&x, spread, c) != Weight(&base, spread, c); got != want {
				t.Errorf("spread %d: another %s changes the weight: %t, want %t", spread, what, got, want)
			}
		}
	}
}
