// SPDX-License-Identifier: Apache-2.0

// Package livetest runs the weir program between network namespaces, with real clients on both sides. It needs root.
//
//	network_test.go  the namespaces and their wires
//	weir_test.go     the program under test: start, kill, scrape, look into its shared memory
//	traffic_test.go  clients and servers
//	verify_test.go   a look at every frame that weir sends
//
// The other files hold the tests.
package livetest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace without a name: it ends with its descriptor and the processes in it, so that not
// even a killed test leaves one behind.
type namespace struct {
	ns    netns.NsHandle
	links *netlink.Handle
}

// newNamespace makes a namespace, with IPv6 on its interfaces or mute: what weir's own interfaces must be.
func newNamespace(t *testing.T, mute bool) *namespace {
	t.Helper()
	n := new(namespace)
	err := onOwnThread(func() (err error) {
		if n.ns, err = netns.New(); err != nil {
			return err
		}
		settings := map[string]string{"all/disable_ipv6": "1", "default/disable_ipv6": "1"}
		if !mute {
			settings = map[string]string{
				"all/disable_ipv6": "0", "default/disable_ipv6": "0", "default/accept_dad": "0", "default/accept_ra": "0",
			}
		}
		for key, value := range settings {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+key, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		n.links, err = netlink.NewHandleAt(n.ns)
	}
	if err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	t.Cleanup(func() {
		n.links.Close()
		n.ns.Close()
	})
	n.up(t, "lo")
	return n
}

// onOwnThread runs f on a thread that ends with it.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: no other goroutine may meet a thread of another namespace
		done <- f()
	}()
	return <-done
}

// do runs f on a thread inside the namespace. Sockets and processes that f makes belong there for ever; goroutines
// that f starts do not.
func (n *namespace) do(f func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(n.ns); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		return f()
	})
}

func (n *namespace) link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := n.links.LinkByName(name)
	if err != nil {
		t.Fatalf("interface %s: %v", name, err)
	}
	return l
}

func (n *namespace) up(t *testing.T, name string) {
	t.Helper()
	if err := n.links.LinkSetUp(n.link(t, name)); err != nil {
		t.Fatalf("interface %s: up: %v", name, err)
	}
}

func (n *namespace) address(t *testing.T, name string, prefixes ...string) {
	t.Helper()
	for _, s := range prefixes {
		p := netip.MustParsePrefix(s)
		a := &netlink.Addr{
			IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
			Flags: unix.IFA_F_NODAD, // else an IPv6 address works only some time later, even on lo
		}
		if err := n.links.AddrAdd(n.link(t, name), a); err != nil {
			t.Fatalf("interface %s: address %s: %v", name, s, err)
		}
	}
}

// gateway makes addresses the default routers, one for each family.
func (n *namespace) gateway(t *testing.T, name string, addresses ...string) {
	t.Helper()
	for _, s := range addresses {
		a := netip.MustParseAddr(s)
		r := &netlink.Route{
			LinkIndex: n.link(t, name).Attrs().Index, Gw: a.AsSlice(),
			Dst: &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())},
		}
		if err := n.links.RouteAdd(r); err != nil {
			t.Fatalf("interface %s: default route by %s: %v", name, s, err)
		}
	}
}

// connect makes a veth pair, both ends up and with checksums in software: who reads raw frames meets no unfinished ones.
func connect(t *testing.T, a *namespace, aName string, b *namespace, bName string) {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: aName}, PeerName: bName, PeerNamespace: netlink.NsFd(b.ns)}
	if err := a.links.LinkAdd(veth); err != nil {
		t.Fatalf("veth pair %s, %s: %v", aName, bName, err)
	}
	for _, end := range []struct {
		*namespace
		name string
	}{{a, aName}, {b, bName}} {
		if err := end.do(func() error { return checksumInSoftware(end.name) }); err != nil {
			t.Fatal(err)
		}
		end.up(t, end.name)
	}
}

// checksumInSoftware is `ethtool -K link tx off` in the thread's namespace.
func checksumInSoftware(link string) error {
	const setTxChecksum = 0x17 // ETHTOOL_STXCSUM
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{setTxChecksum, 0}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of ifreq's union
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], link)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("interface %s: ETHTOOL_STXCSUM: %w", link, errno)
	}
	return nil
}

// The machines of the test network. The guest plays all instances of one VPC, so a client chooses its instance by its
// source address.
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
api: {listen: "127.0.0.1:9474"}
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

// snatPorts is the range in baseConfig.
const snatFirst, snatLast = 1024, 17407

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{guest: newNamespace(t, false), gateway: newNamespace(t, true), internet: newNamespace(t, false)}
	connect(t, n.gateway, "inside", n.guest, "eth0")
	connect(t, n.gateway, "outside", n.internet, "eth0")
	n.guest.verify(t, "eth0")
	n.internet.verify(t, "eth0")
	n.guest.address(t, "eth0", "172.30.0.5/24", "172.30.0.7/24", "fd00:1::5/64", "fd00:1::7/64")
	n.guest.gateway(t, "eth0", "172.30.0.1", "fd00:1::1")
	n.internet.address(t, "eth0", "198.51.100.1/24", "2001:db8::1/64")
	n.internet.address(t, "lo", "203.0.113.1/32", "2001:db8:f::1/128")
	n.internet.gateway(t, "eth0", "198.51.100.2", "2001:db8::2")
	return n
}
