// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	for _, s := range []string{"0.0.0.0", "192.0.2.1", "255.255.255.255", "2001:db8::1", "fe80::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"} {
		a := netip.MustParseAddr(s)
		if got := FromNetip(a).Netip(); got != a {
			t.Errorf("%s came back as %s", a, got)
		}
		if FromNetip(a).Is4() != a.Is4() {
			t.Errorf("%s: Is4 differs", a)
		}
	}
	if FromNetip(netip.Addr{}) != (Addr{}) || (Addr{}).Netip().IsValid() {
		t.Error("the zero address does not stay zero")
	}
}

func TestPrefixRange(t *testing.T) {
	for _, c := range [][3]string{
		{"0.0.0.0/0", "0.0.0.0", "255.255.255.255"},
		{"10.0.0.0/8", "10.0.0.0", "10.255.255.255"},
		{"192.0.2.4/32", "192.0.2.4", "192.0.2.4"},
		{"::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"2001:db8::/32", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"2001:db8::/64", "2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"},
		{"2001:db8::/65", "2001:db8::", "2001:db8::7fff:ffff:ffff:ffff"},
		{"2001:db8::1/128", "2001:db8::1", "2001:db8::1"},
	} {
		first, last := PrefixRange(netip.MustParsePrefix(c[0]))
		if first != FromNetip(netip.MustParseAddr(c[1])) || last != FromNetip(netip.MustParseAddr(c[2])) {
			t.Errorf("%s: %s to %s, expected %s to %s", c[0], first.Netip(), last.Netip(), c[1], c[2])
		}
	}
}

// slowSum adds 16-bit words one by one, RFC 1071 §1.
func slowSum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func TestSum(t *testing.T) {
	fold := func(s uint32) uint16 {
		s = s>>16 + s&0xffff
		return uint16(s>>16 + s&0xffff)
	}
	for range 10000 {
		var b [16]byte
		for i := range b {
			b[i] = byte(rand.Uint32() | rand.Uint32()) // more ones: carries
		}
		if got, want := fold(From16(b[:]).Sum()), slowSum(b[:]); got != want {
			t.Fatalf("%x: sum %04x, expected %04x", b, got, want)
		}
		if got, want := fold(From4(b[:4]).Sum()), slowSum(b[:4]); got != want {
			t.Fatalf("%x: sum %04x, expected %04x", b[:4], got, want)
		}
	}
}

func TestOrder(t *testing.T) {
	a := FromNetip(netip.MustParseAddr("10.0.0.255"))
	if a.Next() != FromNetip(netip.MustParseAddr("10.0.1.0")) || !a.Less(a.Next()) || a.Next().Less(a) {
		t.Error("Next or Less is wrong over a byte")
	}
	b := Addr{1, ^uint64(0)}
	if b.Next() != (Addr{2, 0}) || !b.Less(b.Next()) {
		t.Error("Next or Less is wrong over a word")
	}
}
