// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weir/pipeline/inet"
)

// goldenTable is a range table as a list of prefixes and a loop.
type goldenTable map[netip.Prefix]uint32

func (t goldenTable) find(a netip.Addr) uint32 {
	longest, result := -1, uint32(0)
	for p, r := range t {
		if p.Contains(a) && p.Bits() > longest {
			longest, result = p.Bits(), r
		}
	}
	return result
}

// compiled returns t as a generation whose range table 0 it is.
func (t goldenTable) compiled() *Generation {
	var b builder
	var items []rangeItem
	for p, r := range t {
		items = append(items, itemOf(p, r))
	}
	b.addTable(items)
	return &Generation{Tables: b.Tables}
}

// edges are the first and last address of a prefix and those beside them.
func edges(p netip.Prefix) []netip.Addr {
	_, end := inet.PrefixRange(p)
	first, last := p.Addr(), end.Netip()
	if !last.IsValid() { // ::/128: the zero inet.Addr
		last = first
	}
	return slices.DeleteFunc([]netip.Addr{first, last, first.Prev(), last.Next()}, func(a netip.Addr) bool {
		return !a.IsValid() || a.Is4() != p.Addr().Is4() // an IPv4-mapped address is no IPv6 address here
	})
}

func (t goldenTable) compare(tb testing.TB, ask []netip.Addr) {
	tb.Helper()
	g := t.compiled()
	table := uint32(0)
	if len(t) == 0 {
		table = NoTable
	}
	for p := range t {
		ask = append(ask, edges(p)...)
	}
	for _, a := range ask {
		if got, want := g.Find(table, inet.FromNetip(a)), t.find(a); got != want {
			tb.Fatalf("%v: %d, want %d in %v", a, got, want, t)
		}
	}
	for i := 1; i < len(g.starts); i++ {
		if !g.starts[i-1].Less(g.starts[i]) {
			tb.Fatalf("range %d of %v does not begin behind the one before it", i, t)
		}
	}
}

// randomAddr draws addresses near to each other, from few bits at both ends and in the middle.
func randomAddr(r *rand.Rand, six bool) netip.Addr {
	if !six {
		n := r.Uint32() & [4]uint32{0xff, 0xc0000007, 0xffffffff, 0x00ff0000}[r.IntN(4)]
		if r.IntN(2) == 0 {
			n = ^n
		}
		return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	}
	var b [16]byte
	for i := range b {
		if r.IntN(5) == 0 {
			b[i] = byte(r.Uint32())
		}
	}
	if r.IntN(2) == 0 {
		for i := range b {
			b[i] = ^b[i]
		}
	}
	a := netip.AddrFrom16(b)
	if a.Is4In6() {
		return netip.IPv6Unspecified()
	}
	return a
}

func TestRangeTables(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	tables := 3000
	if testing.Short() {
		tables = 300
	}
	for range tables {
		golden := goldenTable{}
		six := r.IntN(2) == 1
		var parent netip.Prefix
		for range r.IntN(20) {
			a := randomAddr(r, six)
			if parent.IsValid() && r.IntN(2) == 0 {
				a = parent.Addr() // nested, or beside its twin
			}
			p := netip.PrefixFrom(a, r.IntN(a.BitLen()+1)).Masked()
			golden[p] = 1 + r.Uint32N(4)
			parent = p
		}
		var ask []netip.Addr
		for range 50 {
			ask = append(ask, randomAddr(r, six))
		}
		golden.compare(t, ask)
	}
}

func TestRangeTableEdges(t *testing.T) {
	for _, text := range []string{
		"",
		"0.0.0.0/0",
		"0.0.0.0/32",
		"255.255.255.255/32",
		"0.0.0.0/0 0.0.0.0/32 255.255.255.255/32",
		"0.0.0.0/1 128.0.0.0/1",
		"10.0.0.0/25 10.0.0.128/25 10.0.0.0/24 10.0.0.0/8",
		"10.0.0.0/24 10.0.0.255/32 10.0.1.0/32",
		"::/0",
		"::/128",
		"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
		"::/0 ::/128 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128 8000::/1",
		"2001:db8::/64 2001:db8:0:1::/64 2001:db8::/63 2001:db8::/65",
		"2001:db8::ffff:ffff:ffff:ffff/128 2001:db8:0:1::/128",
	} {
		golden := goldenTable{}
		for i, p := range strings.Fields(text) {
			golden[netip.MustParsePrefix(p)] = uint32(1 + i)
		}
		ask := netip.MustParseAddr("10.0.0.1")
		for p := range golden {
			if p.Addr().Is6() {
				ask = netip.MustParseAddr("2001:db8::1")
			}
		}
		golden.compare(t, []netip.Addr{ask})
	}
}

// The table of hosts agrees with a map, also when it is as full as the compiler makes it.
func TestHosts(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 9))
	key := func(domain uint32, a inet.Addr) string { return fmt.Sprint(domain, a) }
	for range 200 {
		b := builder{c: &Compiler{random: r.Uint64}}
		golden := map[string]uint32{}
		for i := range r.IntN(200) {
			h := Host{Addr: inet.FromNetip(randomAddr(r, r.IntN(2) == 1)), Domain: r.Uint32N(3), Kind: HostInstance, Index: uint32(i)}
			if _, ok := golden[key(h.Domain, h.Addr)]; !ok {
				golden[key(h.Domain, h.Addr)] = h.Index
				b.hostList = append(b.hostList, h)
			}
		}
		b.buildHosts()
		g := &Generation{Tables: b.Tables, Header: &Header{HostSecret: b.hostSecret}}
		for range 300 {
			a, domain := inet.FromNetip(randomAddr(r, r.IntN(2) == 1)), r.Uint32N(3)
			if len(b.hostList) > 0 && r.IntN(2) == 0 {
				a = b.hostList[r.IntN(len(b.hostList))].Addr
			}
			index, ok := golden[key(domain, a)]
			if h := g.Host(domain, a); (h != nil) != ok || ok && h.Index != index {
				t.Fatalf("%v in domain %d: %+v, want index %d, %t", a.Netip(), domain, h, index, ok)
			}
		}
	}
}
