// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kernel of a client takes an ICMP error for a socket's own only if the quoted addresses and
// ports are the socket's, and for TCP the sequence number too. So what these tests ask of it is
// whether weir put the quote right.

var (
	far4, far6           = netip.MustParseAddr("203.0.113.50"), netip.MustParseAddr("2001:db8:f::50")
	otherFar4, otherFar6 = netip.MustParseAddr("203.0.113.51"), netip.MustParseAddr("2001:db8:f::51")
)

// farMTU is that of the path between the internet's router and far.
const farMTU = 1300

// newFar puts one more namespace behind the internet's, which becomes a router.
//
//	[guest] --- [gateway] --- [internet] --- [far]
func newFar(t *testing.T, n *network) *namespace {
	t.Helper()
	far := newNamespace(t, false)
	connect(t, n.internet, "far", far, "eth0")
	n.internet.address(t, "far", "198.18.0.1/30", "2001:db8:e::1/64")
	far.address(t, "eth0", "198.18.0.2/30", "2001:db8:e::2/64")
	far.address(t, "lo", far4.String()+"/32", otherFar4.String()+"/32", far6.String()+"/128", otherFar6.String()+"/128")
	far.gateway(t, "eth0", "198.18.0.1", "2001:db8:e::1")
	for _, a := range []netip.Addr{far4, otherFar4, far6, otherFar6} {
		via := netip.MustParseAddr("198.18.0.2")
		if a.Is6() {
			via = netip.MustParseAddr("2001:db8:e::2")
		}
		r := &netlink.Route{LinkIndex: n.internet.link(t, "far").Attrs().Index, Gw: via.AsSlice(), MTU: farMTU,
			Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
		if err := n.internet.Links.RouteAdd(r); err != nil {
			t.Fatalf("route to %v: %v", a, err)
		}
	}
	for _, s := range []*namespace{n.guest, n.internet, far} {
		s.set(t, "net/ipv4/icmp_ratelimit", "0")
		s.set(t, "net/ipv6/icmp/ratelimit", "0")
		s.set(t, "net/ipv4/ping_group_range", "0 0")
	}
	n.internet.set(t, "net/ipv4/ip_forward", "1")
	n.internet.set(t, "net/ipv6/conf/all/forwarding", "1")
	return far
}

// set writes a sysctl of the namespace.
func (n *namespace) set(t *testing.T, key, value string) {
	t.Helper()
	if err := n.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) }); err != nil {
		t.Fatal(err)
	}
}

// told is what came back to a socket: an ICMP error, or an answer.
type told struct {
	typ, code uint8
	by        netip.Addr
	answer    bool
}

func (h told) String() string {
	if h.answer {
		return "an answer"
	}
	return fmt.Sprintf("ICMP %d/%d from %v", h.typ, h.code, h.by)
}

// trace sends one packet of a kind (udp, tcp, ping) with a TTL to a port where nobody listens.
func trace(n *namespace, kind string, from, to netip.Addr, ttl int) (h told, err error) {
	err = n.Do(func() error {
		h, err = traceHere(kind, from, to, ttl)
		return err
	})
	return h, err
}

func traceHere(kind string, from, to netip.Addr, ttl int) (h told, err error) {
	family, level, ttlOption, errOption, icmp := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TTL, unix.IP_RECVERR, unix.IPPROTO_ICMP
	request := []byte{8, 0, 0, 0, 0, 0, 0, 1, 'w', 'e', 'i', 'r'}
	if to.Is6() {
		family, level, ttlOption, errOption, icmp = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVERR, unix.IPPROTO_ICMPV6
		request[0] = 128
	}
	const nobody = 33434
	socket, proto, port := unix.SOCK_DGRAM, 0, nobody
	switch kind {
	case "tcp":
		socket = unix.SOCK_STREAM
	case "ping":
		proto, port = icmp, 0
	}
	fd, err := unix.Socket(family, socket|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return h, err
	}
	defer unix.Close(fd)
	for option, value := range map[int]int{ttlOption: ttl, errOption: 1} {
		if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
			return h, err
		}
	}
	if err := unix.Bind(fd, socketAddress(from, 0)); err != nil {
		return h, fmt.Errorf("bind to %v: %w", from, err)
	}
	if err := unix.Connect(fd, socketAddress(to, port)); err != nil && err != unix.EINPROGRESS {
		return h, fmt.Errorf("connect to %v: %w", to, err)
	}
	if kind != "tcp" {
		if _, err := unix.Write(fd, request); err != nil {
			return h, err
		}
	}
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); {
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		data, control := make([]byte, 2048), make([]byte, 512)
		if _, k, _, _, err := unix.Recvmsg(fd, data, control, unix.MSG_ERRQUEUE); err == nil {
			return readError(control[:k])
		}
		if _, err := unix.Read(fd, data); err == nil || err == unix.ECONNREFUSED && kind == "tcp" { // a reset
			return told{answer: true}, nil
		}
	}
	return h, fmt.Errorf("%s from %v to %v with a TTL of %d: no answer and no ICMP error", kind, from, to, ttl)
}

func socketAddress(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: a.As16()}
}

// readError takes the ICMP error out of a control message: struct sock_extended_err, and the
// address of who sent it.
func readError(control []byte) (h told, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return h, err
	}
	for _, m := range messages {
		if len(m.Data) < int(unsafe.Sizeof(unix.SockExtendedErr{}))+unix.SizeofSockaddrInet4 {
			continue
		}
		h.typ, h.code = m.Data[5], m.Data[6]
		if by := m.Data[16:]; m.Header.Level == unix.IPPROTO_IPV6 {
			h.by = netip.AddrFrom16([16]byte(by[8:]))
		} else {
			h.by = netip.AddrFrom4([4]byte(by[4:]))
		}
		return h, nil
	}
	return h, errors.New("an entry of the error queue without ICMP error")
}

// Every hop of a traceroute is seen through weir: by UDP, TCP and ping, 1:1 and SNAT, in both
// families.
func TestTraceroute(t *testing.T) {
	n := newNetwork(t)
	newFar(t, n)
	w := startWeir(t, n, baseConfig)
	for _, f := range []struct {
		from, to netip.Addr
		hops     []told
		last     told // of UDP; the others are answered
	}{
		{web4, far4, []told{{typ: 11, by: netip.MustParseAddr("172.30.0.1")}, {typ: 11, by: netip.MustParseAddr("198.51.100.1")}}, told{typ: 3, code: 3, by: far4}},
		{batch4, far4, []told{{typ: 11, by: netip.MustParseAddr("172.30.0.1")}, {typ: 11, by: netip.MustParseAddr("198.51.100.1")}}, told{typ: 3, code: 3, by: far4}},
		{web6, far6, []told{{typ: 3, by: netip.MustParseAddr("fd00:1::1")}, {typ: 3, by: netip.MustParseAddr("2001:db8::1")}}, told{typ: 1, code: 4, by: far6}},
		{batch6, far6, []told{{typ: 3, by: netip.MustParseAddr("fd00:1::1")}, {typ: 3, by: netip.MustParseAddr("2001:db8::1")}}, told{typ: 1, code: 4, by: far6}},
	} {
		for _, kind := range []string{"udp", "ping", "tcp"} {
			want := append([]told{}, f.hops...)
			if kind == "udp" {
				want = append(want, f.last)
			} else {
				want = append(want, told{answer: true})
			}
			for i, hop := range want {
				got, err := trace(n.guest, kind, f.from, f.to, i+1)
				if err != nil {
					t.Error(err)
				} else if got != hop {
					t.Errorf("%s from %v to %v, hop %d: %v, expected %v", kind, f.from, f.to, i+1, got, hop)
				}
			}
		}
	}
	// And the other way: who asks an instance for a port where nobody listens is told so, by its
	// public address.
	for _, f := range []struct{ from, to netip.Addr }{{remote4, webPublic4}, {remote6, webPublic6}} {
		want := told{typ: 3, code: 3, by: f.to}
		if f.to.Is6() {
			want = told{typ: 1, code: 4, by: f.to}
		}
		if got, err := trace(n.internet, "udp", f.from, f.to, 64); err != nil || got != want {
			t.Errorf("UDP from %v to %v: %v, %v; expected %v", f.from, f.to, got, err, want)
		}
	}
	w.expectBalance(t)
	w.stop(t)
}

// A TCP transfer finds the smaller MTU of a link far away, whoever began it.
func TestPathMTUDiscovery(t *testing.T) {
	n := newNetwork(t)
	far := newFar(t, n)
	serveEcho(t, far, far4, far6)
	serveEcho(t, n.guest, web4, web6)
	w := startWeir(t, n, baseConfig)
	for _, f := range []struct {
		name            string
		in              *namespace
		from, to        netip.Addr // of the transfer
		guest, internet netip.Addr // the sender of large packets, and whom to
	}{
		{"out, SNAT, IPv4", n.guest, batch4, far4, batch4, far4},
		{"out, SNAT, IPv6", n.guest, batch6, far6, batch6, far6},
		{"in, 1:1, IPv4", far, otherFar4, webPublic4, web4, otherFar4},
		{"in, 1:1, IPv6", far, otherFar6, webPublic6, web6, otherFar6},
	} {
		t.Run(f.name, func(t *testing.T) {
			if mtu := pathMTU(t, n.guest, f.guest, f.internet); mtu != 1500 {
				t.Fatalf("the guest knows a path MTU of %d before", mtu)
			}
			if err := transferTCP(f.in, f.from, f.to, 1<<20); err != nil {
				t.Error(err)
			}
			if mtu := pathMTU(t, n.guest, f.guest, f.internet); mtu != farMTU {
				t.Errorf("the guest knows a path MTU of %d, expected %d", mtu, farMTU)
			}
		})
	}
	w.expectBalance(t)
	w.stop(t)
}

// pathMTU returns what the kernel of a namespace knows of the path.
func pathMTU(t *testing.T, n *namespace, from, to netip.Addr) (mtu int) {
	t.Helper()
	c, err := dialUDP(n, netip.AddrPortFrom(from, 0), to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) {
			if to.Is6() {
				mtu, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU)
			} else {
				mtu, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return mtu
}
