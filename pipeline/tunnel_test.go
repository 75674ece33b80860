// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/inet"
	"weir/pipeline/packettext"
	"weir/pipeline/state"
)

// Two VPCs with the same addresses on one underlay, and an instance on the move between two hosts.
const tunnelConfig = `version: 1
ports:
  - name: in
    device: net_null0
    side: inside
    mac: "02:00:00:00:00:01"
    mtu: 1600
    addresses: [10.255.0.1/24, "fd00:ff::1/64"]
    next_hops: [{address: 10.255.0.254, mac: "02:00:00:00:09:fe"}, {address: "fd00:ff::fe", mac: "02:00:00:00:09:fe"}]
  - {name: out, device: net_null1, side: outside, mac: "02:00:00:00:00:02", addresses: [198.51.100.2/24], next_hops: [{address: 198.51.100.1, mac: "02:00:00:00:02:01"}]}
pools: [{name: p, ranges: [192.0.2.0/24]}]
gateways: [{name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}]
vpcs:
  - name: blue
    attach: [{port: in, encap: geneve, vni: 7, peers: [10.255.0.0/16], addresses: [10.0.0.1/24], dscp: copy, mac: "02:00:00:00:0b:01"}]
    subnets: [10.0.0.0/24]
    routes: [{to: 0.0.0.0/0, gateway: g}]
    instances:
      - {name: one, addresses: [10.0.0.5], mac: "02:00:00:00:01:05", host: [10.255.0.9, 10.255.7.9], external: {floating: [192.0.2.5]}}
      - {name: two, addresses: [10.0.0.6], host: 10.255.7.9, external: {floating: [192.0.2.6]}}
  - name: green
    attach: [{port: in, encap: vxlan, vni: 7, peers: ["fd00:ff::/32"], addresses: [10.0.0.1/24], udp_checksum: zero, dscp: 46}]
    subnets: [10.0.0.0/24]
    routes: [{to: 0.0.0.0/0, gateway: g}]
    instances:
      - {name: one, addresses: [10.0.0.5], mac: "02:00:00:00:01:15", host: "fd00:ff::9", external: {floating: [192.0.2.15]}}
`

// wrapped puts an inner frame into a Geneve packet over IPv4, or a VXLAN packet over IPv6.
func wrapped(t testing.TB, from string, vni uint32, inner []byte) []byte {
	t.Helper()
	src := netip.MustParseAddr(from)
	dst, shim, port := netip.MustParseAddr("10.255.0.1"), binary.BigEndian.AppendUint32([]byte{0, 0, 0x65, 0x58}, vni<<8), 6081
	if src.Is6() {
		dst, shim, port = netip.MustParseAddr("fd00:ff::1"), binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8), 4789
	}
	head := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 9, 9}
	size := 8 + len(shim) + len(inner)
	udp := []byte{0xc3, 0x50, byte(port >> 8), byte(port), byte(size >> 8), byte(size), 0, 0}
	if src.Is6() {
		return slices.Concat(head, []byte{0x86, 0xdd, 0x60, 0, 0, 0, byte(size >> 8), byte(size), 17, 64}, src.AsSlice(), dst.AsSlice(), udp, shim, inner)
	}
	b := slices.Concat(head, []byte{8, 0, 0x45, 0, byte((20 + size) >> 8), byte(20 + size), 0, 0, 0x40, 0, 64, 17, 0, 0}, src.AsSlice(), dst.AsSlice(), udp, shim, inner)
	fixIPv4(b)
	return b
}

// fixIPv4 makes the outer header's checksum right.
func fixIPv4(b []byte) {
	binary.BigEndian.PutUint16(b[24:], 0)
	sum := uint32(0)
	for i := 14; i < 14+int(b[14]&15)*4; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[24:], ^uint16(sum))
}

type tunnelRig struct {
	*testing.T
	w *Worker
}

func newTunnelRig(t *testing.T) *tunnelRig {
	w := newSourceWorker(t, tunnelConfig)
	for _, host := range []string{"10.255.0.9", "fd00:ff::9"} {
		if _, err := w.neighbors.Set(attach.Port(0), inet.FromNetip(netip.MustParseAddr(host)), state.NeighborReachable, config.MAC{2, 0, 0, 0, 3, 3}); err != nil {
			t.Fatal(err)
		}
	}
	return &tunnelRig{t, w}
}

// send takes a frame in by a port and returns what leaves, and the reason if it was dropped.
func (r *tunnelRig) send(port int, frame []byte) (out []byte, by int, reason drop.Reason) {
	r.Helper()
	w := r.w
	before := w.counters.Dropped
	const front = 128
	buffer := append(make([]byte, front), frame...)
	var b Burst
	b.Port, b.N = port, 1
	b.Packets[0].Data, b.Packets[0].Front = buffer[front:], front
	w.Process(&b)
	by = -1
	for p := range w.Out {
		if q := &w.Out[p]; q.N > 0 {
			out, by = bytes.Clone(q.Frames[0]), p
		}
	}
	w.drain()
	for reason := range w.counters.Dropped {
		if w.counters.Dropped[reason] != before[reason] {
			return out, by, drop.Reason(reason)
		}
	}
	if t := w.counters.Totals(); t.Received != t.Forwarded+t.Punted+t.Dropped+t.Held {
		r.Fatalf("received is not what became of it: %+v", t)
	}
	return out, by, drop.Pass
}

func innerFrame(t testing.TB, macs, line string) []byte {
	t.Helper()
	f, err := packettext.Parse(macs + " " + line)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

const (
	blueMACs  = "02:00:00:00:01:05 > 02:00:00:00:0b:01"
	greenMACs = "02:00:00:00:01:15 > 02:00:00:00:00:01"
)

func TestTunnelBothWays(t *testing.T) {
	r := newTunnelRig(t)
	ask := `udp 10.0.0.5:1000 > 8.8.8.8:53 tos=185 "ask"` // DSCP 46, ECT(1)
	for range 2 {                                         // by the stages, then the short way
		out, by, reason := r.send(0, wrapped(t, "10.255.0.9", 7, innerFrame(t, blueMACs, ask)))
		if by != 1 || !strings.Contains(packettext.Format(out), "192.0.2.5:1000 > 8.8.8.8:53") {
			t.Fatalf("blue: %v, port %d: %s", reason, by, packettext.Format(out))
		}
		out, by, reason = r.send(0, wrapped(t, "fd00:ff::9", 7, innerFrame(t, greenMACs, ask)))
		if by != 1 || !strings.Contains(packettext.Format(out), "192.0.2.15:1000 > 8.8.8.8:53") {
			t.Fatalf("green: %v, port %d: %s", reason, by, packettext.Format(out))
		}
	}
	back := func(to string) []byte {
		return innerFrame(t, "02:00:00:00:02:01 > 02:00:00:00:00:02", `udp 8.8.8.8:53 > `+to+`:1000 tos=185 "answer"`)
	}
	out, by, _ := r.send(1, back("192.0.2.5"))
	if by != 0 || len(out) < 50 || out[15] != 185 || binary.BigEndian.Uint32(out[46:]) != 7<<8 || !bytes.Equal(out[30:34], []byte{10, 255, 0, 9}) {
		t.Fatalf("to blue by port %d: % x", by, out)
	}
	if got := packettext.Format(out[50:]); !strings.HasPrefix(got, "02:00:00:00:0b:01 > 02:00:00:00:01:05 udp 8.8.8.8:53 > 10.0.0.5:1000") {
		t.Errorf("to blue: %s", got)
	}
	if mac := out[:6]; !bytes.Equal(mac, []byte{2, 0, 0, 0, 3, 3}) {
		t.Errorf("the outer packet to a neighbor goes to % x", mac)
	}
	out, by, _ = r.send(1, back("192.0.2.15"))
	// DSCP 46 and the inner ECN in the traffic class; no UDP checksum.
	if by != 0 || len(out) < 70 || out[14]<<4|out[15]>>4 != 46<<2|1 || binary.BigEndian.Uint16(out[60:]) != 0 || binary.BigEndian.Uint32(out[66:]) != 7<<8 {
		t.Fatalf("to green by port %d: % x", by, out)
	}
	// Behind a router of the underlay, and an inner MAC that is not known yet: it is not asked for.
	if _, _, reason := r.send(1, back("192.0.2.6")); reason != drop.NeighborUnresolved {
		t.Errorf("to an instance that has not spoken yet: %v", reason)
	}
	if _, by, reason := r.send(0, wrapped(t, "10.255.7.9", 7, innerFrame(t, "02:00:00:00:01:06 > 02:00:00:00:0b:01", "udp 10.0.0.6:1000 > 8.8.8.8:53"))); by != 1 {
		t.Errorf("from an instance without a configured MAC: %v", reason)
	}
	out, by, _ = r.send(1, back("192.0.2.6"))
	if by != 0 || !bytes.Equal(out[:6], []byte{2, 0, 0, 0, 9, 0xfe}) || !bytes.Equal(out[30:34], []byte{10, 255, 7, 9}) {
		t.Errorf("to a host behind a router: port %d, % x", by, out)
	}
	if len(out) > 56 && !bytes.Equal(out[50:56], []byte{2, 0, 0, 0, 1, 6}) {
		t.Errorf("the instance's MAC is what its packet had: % x", out[50:56])
	}
}

// A packet must come from a host of its instance, with its VNI, its MAC and its address.
func TestTunnelSpoofing(t *testing.T) {
	r := newTunnelRig(t)
	ask := "udp 10.0.0.5:1000 > 8.8.8.8:53"
	for range 2 { // the second time there is a session
		for _, c := range []struct {
			from   string
			vni    uint32
			frame  []byte
			reason drop.Reason
		}{
			{"10.255.0.9", 7, innerFrame(t, blueMACs, ask), drop.Pass},
			{"10.255.7.9", 7, innerFrame(t, blueMACs, ask), drop.Pass}, // where it migrates to
			{"10.255.0.10", 7, innerFrame(t, blueMACs, ask), drop.TunnelPeer},
			{"fd00:ff::a", 7, innerFrame(t, greenMACs, ask), drop.TunnelPeer},
			{"10.255.0.9", 8, innerFrame(t, blueMACs, ask), drop.TunnelVNI},
			{"10.255.0.9", 7, innerFrame(t, "02:00:00:00:01:06 > 02:00:00:00:0b:01", ask), drop.SpoofedMAC},
			{"10.255.0.9", 7, innerFrame(t, "02:00:00:00:01:06 > 02:00:00:00:0b:01", "udp 10.0.0.6:1000 > 8.8.8.8:53"), drop.SpoofedHost},
			{"10.255.7.9", 7, innerFrame(t, "02:00:00:00:01:06 > 02:00:00:00:0b:01", "udp 10.0.0.6:1000 > 8.8.8.8:53"), drop.Pass},
			{"10.255.0.9", 7, innerFrame(t, blueMACs, "udp 10.0.0.77:1000 > 8.8.8.8:53"), drop.AntiSpoof},
			{"10.255.0.9", 7, innerFrame(t, "02:00:00:00:01:05 > 02:00:00:00:00:77", ask), drop.NotOurMAC},
			{"10.255.0.9", 7, innerFrame(t, "02:00:00:00:01:06 > ff:ff:ff:ff:ff:ff", "arp who-has 10.0.0.1 tell 10.0.0.6"), drop.SpoofedHost},
			{"10.255.7.9", 7, innerFrame(t, "02:00:00:00:01:06 > ff:ff:ff:ff:ff:ff", "arp who-has 10.0.0.1 tell 10.0.0.6"), drop.Pass},
		} {
			if _, _, reason := r.send(0, wrapped(t, c.from, c.vni, c.frame)); reason != c.reason {
				t.Errorf("from %s, VNI %d, %s: %v, want %v", c.from, c.vni, packettext.Format(c.frame), reason, c.reason)
			}
		}
	}
}

// Each way in which an outer packet is wrong has its reason (M-14).
func TestTunnelRefusals(t *testing.T) {
	r := newTunnelRig(t)
	ask := innerFrame(t, blueMACs, "udp 10.0.0.5:1000 > 8.8.8.8:53")
	geneve := wrapped(t, "10.255.0.9", 7, ask)
	vxlan := wrapped(t, "fd00:ff::9", 7, innerFrame(t, greenMACs, "udp 10.0.0.5:1000 > 8.8.8.8:53"))
	inner := func(change func(b []byte)) []byte {
		b := bytes.Clone(ask)
		change(b)
		return wrapped(t, "10.255.0.9", 7, b)
	}
	options := func(control byte, opts ...byte) []byte {
		b := slices.Insert(bytes.Clone(geneve), 50, opts...)
		b[42], b[43] = b[42]|byte(len(opts)/4), control
		binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
		binary.BigEndian.PutUint16(b[38:], uint16(len(b)-34))
		fixIPv4(b)
		return b
	}
	set := func(base []byte, at int, x byte) []byte {
		b := bytes.Clone(base)
		b[at] = x
		if base[12] == 8 && at > 14 && at < 34 && at != 24 {
			fixIPv4(b)
		}
		return b
	}
	for name, c := range map[string]struct {
		frame  []byte
		reason drop.Reason
	}{
		"as it should be":               {geneve, drop.Pass},
		"an option":                     {options(0, 1, 2, 3, 1, 9, 9, 9, 9), drop.Pass},
		"the header's checksum":         {set(geneve, 24, geneve[24]^1), drop.TunnelChecksum},
		"a fragment":                    {set(geneve, 20, 0x20), drop.TunnelFragment},
		"a later fragment":              {set(geneve, 21, 1), drop.TunnelFragment},
		"cut":                           {geneve[:len(geneve)-1], drop.TunnelLength},
		"UDP is shorter":                {set(geneve, 39, geneve[39]-1), drop.TunnelLength},
		"UDP is longer":                 {set(geneve, 39, geneve[39]+1), drop.TunnelLength},
		"version 1":                     {set(geneve, 42, 0x40), drop.TunnelVersion},
		"no VNI":                        {set(vxlan, 62, 0), drop.TunnelVersion},
		"control":                       {set(geneve, 43, 0x80), drop.TunnelControl},
		"options over the end":          {set(geneve, 42, 0x3f), drop.TunnelOptions},
		"an option over the options":    {options(0, 1, 2, 3, 2, 9, 9, 9, 9), drop.TunnelOptions},
		"a critical option":             {options(0x40, 1, 2, 0x83, 0), drop.TunnelCritical},
		"a critical option, untold":     {options(0, 1, 2, 0x83, 0), drop.TunnelCritical},
		"no Ethernet":                   {set(geneve, 44, 0x08), drop.TunnelInner},
		"an inner tag":                  {inner(func(b []byte) { b[12], b[13] = 0x81, 0 }), drop.TunnelInnerTag},
		"another VNI":                   {set(geneve, 47, 1), drop.TunnelVNI},
		"congestion of what takes none": {set(geneve, 15, 3), drop.TunnelECN},
		"a foreign station":             {set(geneve, 5, 9), drop.NotOurMAC},
		"our own MAC":                   {set(set(set(geneve, 6, 2), 10, 0), 11, 1), drop.Martian},
		"a fragment, IPv6":              {set(set(vxlan, 20, 44), 54, 17), drop.TunnelFragment},
		"cut, IPv6":                     {vxlan[:len(vxlan)-1], drop.TunnelLength},
		"for another port":              {set(geneve, 36, 9), drop.NoService},
		"for another address":           {set(geneve, 33, 9), drop.AntiSpoof},
	} {
		if _, _, reason := r.send(0, c.frame); reason != c.reason {
			t.Errorf("%s: %v, want %v", name, reason, c.reason)
		}
	}
}

// What the underlay says of congestion comes into the inner packet, as RFC 6040 figure 4 has it.
func TestTunnelCongestion(t *testing.T) {
	r := newTunnelRig(t)
	for _, c := range []struct{ inner, outer, want int }{
		{0, 0, 0}, {0, 1, 0}, {0, 2, 0}, {0, 3, -1}, {1, 0, 1}, {1, 2, 1}, {1, 3, 3}, {2, 0, 2}, {2, 1, 1}, {2, 2, 2}, {2, 3, 3}, {3, 0, 3}, {3, 1, 3}, {3, 2, 3}, {3, 3, 3},
	} {
		b := wrapped(t, "10.255.0.9", 7, innerFrame(t, blueMACs, "udp 10.0.0.5:1000 > 8.8.8.8:53 tos="+string(rune('0'+c.inner))))
		b[15] = byte(c.outer)
		fixIPv4(b)
		out, _, reason := r.send(0, b)
		switch {
		case c.want < 0 && reason != drop.TunnelECN:
			t.Errorf("inner %d, outer %d: %v", c.inner, c.outer, reason)
		case c.want >= 0 && (len(out) < 34 || int(out[15]) != c.want || packettext.Verify(out) != nil):
			t.Errorf("inner %d, outer %d: want %d: % x: %v", c.inner, c.outer, c.want, out, packettext.Verify(out))
		}
	}
}

// No frame crashes: each byte of good ones changed, each length, with one reason or none for each.
func TestTunnelMutations(t *testing.T) {
	r := newTunnelRig(t)
	for _, good := range [][]byte{
		wrapped(t, "10.255.0.9", 7, innerFrame(t, blueMACs, `tcp 10.0.0.5:1000 > 8.8.8.8:53 SYN "x"`)),
		wrapped(t, "fd00:ff::9", 7, innerFrame(t, greenMACs, "udp 10.0.0.5:1000 > 8.8.8.8:53")),
		wrapped(t, "10.255.0.9", 7, innerFrame(t, "02:00:00:00:01:05 > ff:ff:ff:ff:ff:ff", "arp who-has 10.0.0.1 tell 10.0.0.5")),
	} {
		for n := range good {
			r.send(0, good[:n])
			for _, x := range []byte{0, 1, 0x11, 0x3f, 0x40, 0x80, 0xff, good[n] ^ 1, good[n] ^ 0x80} {
				b := bytes.Clone(good)
				b[n] = x
				r.send(0, b)
				if b[12] == 8 && b[14]&15 >= 5 && len(b) > 14+int(b[14]&15)*4 {
					fixIPv4(b)
					r.send(0, b)
				}
			}
		}
	}
}
