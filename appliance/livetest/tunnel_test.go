// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// tunnels puts two VPCs with the same addresses behind one kernel's VXLAN devices, the second over
// IPv6.
const tunnelVPCs = `vpcs:
  - name: blue
    attach: [{port: inside, encap: vxlan, vni: 7, peers: [10.255.0.0/24], addresses: [172.30.0.1/24, "fd00:1::1/64"]}]
    subnets: [172.30.0.0/24, "fd00:1::/64"]
    routes: [{to: 0.0.0.0/0, gateway: default}, {to: "::/0", gateway: default}]
    instances:
      - {name: web, addresses: [172.30.0.5, "fd00:1::5"], host: 10.255.0.9, external: {floating: [192.0.2.5, "2001:db8:1::5"]}}
      - {name: batch, addresses: [172.30.0.7, "fd00:1::7"], host: 10.255.0.9,
         external: {snat: [{address: 192.0.2.14, ports: 1024-17407}, {address: "2001:db8:1::e", ports: 1024-17407}]}}
  - name: green
    attach: [{port: inside, encap: vxlan, vni: 8, peers: ["fd00:ff::/64"], addresses: [172.30.0.1/24, "fd00:1::1/64"]}]
    subnets: [172.30.0.0/24, "fd00:1::/64"]
    routes: [{to: 0.0.0.0/0, gateway: default}, {to: "::/0", gateway: default}]
    instances:
      - {name: web, addresses: [172.30.0.5, "fd00:1::5"], host: "fd00:ff::9", external: {floating: [192.0.2.25, "2001:db8:1::25"]}}
      - {name: batch, addresses: [172.30.0.7, "fd00:1::7"], host: "fd00:ff::9",
         external: {snat: [{address: 192.0.2.34, ports: 1024-17407}, {address: "2001:db8:1::2e", ports: 1024-17407}]}}
`

// newTunneledGuest makes a guest whose only interface is a VXLAN device of the host's kernel.
func newTunneledGuest(t *testing.T, host *namespace, vni int, local, remote string) *namespace {
	t.Helper()
	guest := newNamespace(t, false)
	guest.losses = host.losses
	device := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx0"}, VxlanId: vni, Port: 4789,
		SrcAddr: netip.MustParseAddr(local).AsSlice(), Group: netip.MustParseAddr(remote).AsSlice(), UDPCSum: true}
	if err := host.Links.LinkAdd(device); err != nil {
		t.Fatalf("VXLAN device: %v", err)
	}
	// Its outer packets stay in the host's namespace, where it was made.
	if err := host.Links.LinkSetNsFd(host.link(t, "vx0"), int(guest.NS)); err != nil {
		t.Fatal(err)
	}
	guest.up(t, "vx0")
	guest.address(t, "vx0", "172.30.0.5/24", "172.30.0.7/24", "fd00:1::5/64", "fd00:1::7/64")
	guest.gateway(t, "vx0", "172.30.0.1", "fd00:1::1")
	return guest
}

// Linux is the tunnels' other end: two VPCs with the same addresses, one over IPv4 and one over
// IPv6, each way, 1:1 and SNAT. Both ends find each other's addresses by ARP and neighbor
// discovery, in the underlay and through the tunnels.
func TestKernelVXLAN(t *testing.T) {
	n := newWiring(t)
	n.guest.address(t, "eth0", "10.255.0.9/24", "fd00:ff::9/64")
	blue := newTunneledGuest(t, n.guest, 7, "10.255.0.9", "10.255.0.1")
	green := newTunneledGuest(t, n.guest, 8, "fd00:ff::9", "fd00:ff::1")
	serveEcho(t, n.internet, remote4, remote6)
	serveEcho(t, blue, web4, web6)
	serveEcho(t, green, web4, web6)

	config := replace(t, baseConfig[:strings.Index(baseConfig, "vpcs:\n")], `iface=inside,framecnt=4096"}`, `iface=inside,framecnt=4096", addresses: [10.255.0.1/24, "fd00:ff::1/64"]}`)
	w := startWeir(t, n, config+tunnelVPCs)
	address := netip.MustParseAddr
	for _, f := range []struct {
		name         string
		in           *namespace
		from, to     netip.Addr
		source       netip.Addr
		snat, tunnel bool
	}{
		{"blue out, 1:1, IPv4", blue, web4, remote4, webPublic4, false, true},
		{"blue out, 1:1, IPv6", blue, web6, remote6, webPublic6, false, true},
		{"blue out, SNAT, IPv4", blue, batch4, remote4, batchPublic4, true, true},
		{"blue out, SNAT, IPv6", blue, batch6, remote6, batchPublic6, true, true},
		{"green out, 1:1, IPv4", green, web4, remote4, address("192.0.2.25"), false, true},
		{"green out, 1:1, IPv6", green, web6, remote6, address("2001:db8:1::25"), false, true},
		{"green out, SNAT, IPv4", green, batch4, remote4, address("192.0.2.34"), true, true},
		{"green out, SNAT, IPv6", green, batch6, remote6, address("2001:db8:1::2e"), true, true},
		{"blue in, 1:1, IPv4", n.internet, remote4, webPublic4, remote4, false, false},
		{"blue in, 1:1, IPv6", n.internet, remote6, webPublic6, remote6, false, false},
		{"green in, 1:1, IPv4", n.internet, remote4, address("192.0.2.25"), remote4, false, false},
		{"green in, 1:1, IPv6", n.internet, remote6, address("2001:db8:1::25"), remote6, false, false},
	} {
		t.Run(f.name, func(t *testing.T) {
			seen, err := echoUDP(f.in, f.from, f.to)
			if err != nil {
				t.Fatal(err)
			}
			if seen.Addr() != f.source || f.snat && (seen.Port() < snatFirst || seen.Port() > snatLast) {
				t.Errorf("UDP: the other side saw %v, expected %v", seen, f.source)
			}
			if err := transferTCP(f.in, f.from, f.to, 2<<20); err != nil { // full segments, that the tunnel's MTU must let through
				t.Errorf("TCP: %v", err)
			}
		})
	}
	s := w.scrape(t)
	for _, reason := range []string{"tunnel_checksum", "tunnel_length", "tunnel_fragment", "tunnel_vni", "tunnel_peer", "spoofed_host", "too_big"} {
		for series, v := range s {
			if strings.HasPrefix(series, "weir_dropped_packets_total") && strings.Contains(series, `"`+reason+`"`) && v != 0 {
				t.Errorf("%s is %v", series, v)
			}
		}
	}
}
