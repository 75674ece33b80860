// SPDX-License-Identifier: Apache-2.0

// Package livetest runs the weir program between network namespaces, with real clients on both
// sides. It needs root.
//
//	network_test.go  the namespaces and their wires, out of deploy/lab
//	losses_test.go   what was lost, and whose fault it is
//	weir_test.go     the program under test: start, kill, scrape, look into its shared memory
//	traffic_test.go  clients and servers
//	verify_test.go   a look at every frame that weir sends
//
// The other files hold the tests.
package livetest

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"weir/deploy/lab"
)

// namespace is a network namespace of the laboratory, for a test: what fails there fails the test.
type namespace struct {
	*lab.Namespace
	losses *losses // of the network that it belongs to
}

// newNamespace makes a namespace, with IPv6 on its interfaces or mute: what weir's own interfaces
// must be.
func newNamespace(t *testing.T, mute bool) *namespace {
	t.Helper()
	n, err := lab.New(mute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return &namespace{Namespace: n, losses: new(losses)}
}

func (n *namespace) link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := n.Links.LinkByName(name)
	if err != nil {
		t.Fatalf("interface %s: %v", name, err)
	}
	return l
}

func (n *namespace) up(t *testing.T, name string) {
	t.Helper()
	if err := n.Up(name); err != nil {
		t.Fatal(err)
	}
}

func (n *namespace) address(t *testing.T, name string, prefixes ...string) {
	t.Helper()
	for _, s := range prefixes {
		if err := n.Address(name, netip.MustParsePrefix(s)); err != nil {
			t.Fatal(err)
		}
	}
}

// gateway makes addresses the default routers, one for each family.
func (n *namespace) gateway(t *testing.T, name string, addresses ...string) {
	t.Helper()
	for _, s := range addresses {
		if err := n.DefaultRoute(name, netip.MustParseAddr(s)); err != nil {
			t.Fatal(err)
		}
	}
}

func connect(t *testing.T, a *namespace, aName string, b *namespace, bName string) {
	t.Helper()
	if err := lab.Connect(lab.End{Namespace: a.Namespace, Link: aName}, lab.End{Namespace: b.Namespace, Link: bName}); err != nil {
		t.Fatal(err)
	}
}

// The machines of the test network. The guest plays all instances of one VPC, so a client chooses
// its instance by its source address.
//
//	[guest] eth0 --- inside [gateway] outside --- eth0 [internet]
type network struct {
	guest, gateway, internet *namespace
}

var (
	web4, web6     = netip.MustParseAddr("172.30.0.5"), netip.MustParseAddr("fd00:1::5") // 1:1
	batch4, batch6 = netip.MustParseAddr("172.30.0.7"), netip.MustParseAddr("fd00:1::7") // SNAT

	webPublic4, webPublic6     = netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("2001:db8:1::5")
	batchPublic4, batchPublic6 = netip.MustParseAddr("192.0.2.14"), netip.MustParseAddr("2001:db8:1::e")

	remote4, remote6 = netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:f::1")
)

// baseConfig is the gateway's configuration; tests replace parts of it.
const baseConfig = `version: 1
api: {listen: "127.0.0.1:9474", socket: ""}
dataplane: {workers: [1], memory: 64MiB, idle: sleep, sessions: 8192}
ports:
  - {name: inside, side: inside, device: "net_af_packet0,iface=inside,framecnt=4096"}
  - name: outside
    side: outside
    device: "net_af_packet1,iface=outside,framecnt=4096"
    addresses: [198.51.100.2/24, "2001:db8::2/64"]
    next_hops: [198.51.100.1, "2001:db8::1"]
pools:
  - {name: public, ranges: [192.0.2.0/24, "2001:db8:1::/64"]}
gateways:
  - {name: default, id: 00000000-0000-4000-8000-000000000001, pools: [public]}
sessions: {}
vpcs:
  - name: blue
    attach:
      - {port: inside, addresses: [172.30.0.1/24, "fd00:1::1/64"]}
    subnets: [172.30.0.0/24, "fd00:1::/64"]
    routes:
      - {to: 0.0.0.0/0, gateway: default}
      - {to: "::/0", gateway: default}
    instances:
      - name: web
        addresses: [172.30.0.5, "fd00:1::5"]
        external: {floating: [192.0.2.5, "2001:db8:1::5"]}
      - name: batch
        addresses: [172.30.0.7, "fd00:1::7"]
        external:
          snat:
            - {address: 192.0.2.14, ports: 1024-17407}
            - {address: "2001:db8:1::e", ports: 1024-17407}
`

// snatFirst to snatLast is the range in baseConfig.
const snatFirst, snatLast = 1024, 17407

// newWiring is a network whose guest has no addresses yet.
func newWiring(t *testing.T) *network {
	t.Helper()
	n := &network{guest: newNamespace(t, false), gateway: newNamespace(t, true), internet: newNamespace(t, false)}
	shared := &losses{ends: []*namespace{n.guest, n.internet}}
	n.guest.losses, n.gateway.losses, n.internet.losses = shared, shared, shared
	connect(t, n.gateway, "inside", n.guest, "eth0")
	connect(t, n.gateway, "outside", n.internet, "eth0")
	n.guest.verify(t, "eth0")
	n.internet.verify(t, "eth0")
	n.internet.address(t, "eth0", "198.51.100.1/24", "2001:db8::1/64")
	n.internet.address(t, "lo", "203.0.113.1/32", "2001:db8:f::1/128")
	n.internet.gateway(t, "eth0", "198.51.100.2", "2001:db8::2")
	return n
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := newWiring(t)
	n.guest.address(t, "eth0", "172.30.0.5/24", "172.30.0.7/24", "fd00:1::5/64", "fd00:1::7/64")
	n.guest.gateway(t, "eth0", "172.30.0.1", "fd00:1::1")
	return n
}
