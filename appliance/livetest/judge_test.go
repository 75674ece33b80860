// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// kernelNAT gives the kernel the place of weir in a network: the same addresses, the same
// translation by nftables.
func kernelNAT(t *testing.T, n *network) {
	t.Helper()
	g := n.gateway
	script := `
for i in all inside outside; do echo 0 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
ip address add 172.30.0.1/24 dev inside
ip address add fd00:1::1/64 dev inside nodad
ip address add 198.51.100.2/24 dev outside
ip address add 2001:db8::2/64 dev outside nodad
ip route add default via 198.51.100.1
ip -6 route add default via 2001:db8::1
ip route add blackhole 192.0.2.14
ip -6 route add blackhole 2001:db8:1::e
nft -f - <<'end'
table inet nat {
	chain out {
		type nat hook postrouting priority srcnat
		oifname "outside" ip saddr 172.30.0.5 snat ip to 192.0.2.5
		oifname "outside" ip6 saddr fd00:1::5 snat ip6 to 2001:db8:1::5
		oifname "outside" ip saddr 172.30.0.7 meta l4proto { tcp, udp } snat ip to 192.0.2.14:1024-17407
		oifname "outside" ip6 saddr fd00:1::7 meta l4proto { tcp, udp } snat ip6 to [2001:db8:1::e]:1024-17407
		oifname "outside" ip saddr 172.30.0.7 snat ip to 192.0.2.14
		oifname "outside" ip6 saddr fd00:1::7 snat ip6 to 2001:db8:1::e
	}
	chain in {
		type nat hook prerouting priority dstnat
		ip daddr 192.0.2.5 dnat ip to 172.30.0.5
		ip6 daddr 2001:db8:1::5 dnat ip6 to fd00:1::5
	}
}
end
`
	err := g.Do(func() error {
		cmd := exec.Command("bash", "-euc", script)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("the kernel's NAT (nft is in the Debian package nftables): %v", err)
	}
}

// sight is something that a client does, and what it sees of it: what is the same behind any
// gateway that translates rightly.
type sight struct {
	name string
	see  func(n *network) string
}

// outcome tells how something ended.
func outcome(err error, good string) string {
	switch {
	case err == nil:
		return good
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.EHOSTUNREACH):
		return "host unreachable"
	case errors.Is(err, syscall.EMSGSIZE):
		return "too long"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "silence"
	}
	return err.Error()
}

// sights are tried behind weir and behind the kernel.
func sights() (list []sight) {
	add := func(name string, see func(n *network) string) { list = append(list, sight{name, see}) }
	for _, from := range []struct {
		name    string
		from    netip.Addr
		remote  netip.Addr
		nowhere netip.AddrPort // nobody listens
	}{
		{"1:1, IPv4", web4, remote4, netip.AddrPortFrom(remote4, 9)}, {"1:1, IPv6", web6, remote6, netip.AddrPortFrom(remote6, 9)},
		{"SNAT, IPv4", batch4, remote4, netip.AddrPortFrom(remote4, 9)}, {"SNAT, IPv6", batch6, remote6, netip.AddrPortFrom(remote6, 9)},
	} {
		add("a datagram, "+from.name, func(n *network) string {
			seen, err := echoUDP(n.guest, from.from, from.remote)
			return outcome(err, "seen from "+seen.Addr().String())
		})
		add("a connection, "+from.name, func(n *network) string {
			return outcome(transferTCP(n.guest, from.from, from.remote, 1<<20), "a MiB there and back")
		})
		add("a ping, "+from.name, func(n *network) string { return outcome(ping(n.guest, from.from, from.remote), "answered") })
		add("a second ping, "+from.name, func(n *network) string { return outcome(ping(n.guest, from.from, from.remote), "answered") })
		add("a closed port, "+from.name, func(n *network) string { return dialFrom(n.guest, from.from, 0, from.nowhere) })
		add("a datagram to a closed port, "+from.name, func(n *network) string { return knock(n.guest, from.from, from.nowhere) })
		add("one port again and again, "+from.name, func(n *network) string {
			var all []string
			for range 5 {
				all = append(all, dialFrom(n.guest, from.from, 56000, netip.AddrPortFrom(from.remote, echoPort)))
			}
			return strings.Join(all, ", ")
		})
		add("two hundred sockets, "+from.name, func(n *network) string { return many(n.guest, from.from, from.remote, 200) })
	}
	for _, to := range []struct {
		name         string
		from, public netip.Addr
	}{{"IPv4", remote4, webPublic4}, {"IPv6", remote6, webPublic6}} {
		add("a datagram from outside, "+to.name, func(n *network) string {
			seen, err := echoUDP(n.internet, to.from, to.public)
			return outcome(err, "seen from "+seen.Addr().String())
		})
		add("a connection from outside, "+to.name, func(n *network) string {
			return outcome(transferTCP(n.internet, to.from, to.public, 1<<20), "a MiB there and back")
		})
		add("a ping from outside, "+to.name, func(n *network) string { return outcome(ping(n.internet, to.from, to.public), "answered") })
		add("a closed port from outside, "+to.name, func(n *network) string {
			return dialFrom(n.internet, to.from, 0, netip.AddrPortFrom(to.public, 9))
		})
		add("a datagram to a closed port from outside, "+to.name, func(n *network) string {
			return knock(n.internet, to.from, netip.AddrPortFrom(to.public, 9))
		})
	}
	add("a stranger's datagram to an SNAT address", func(n *network) string {
		_, err := echoUDP(n.internet, remote4, batchPublic4)
		return outcome(err, "answered")
	})
	add("a stranger's ping to an SNAT address", func(n *network) string { return outcome(ping(n.internet, remote6, batchPublic6), "answered") })
	add("one source port of two instances", func(n *network) string {
		var seen []string
		for _, from := range []netip.Addr{web4, batch4} {
			c, err := dialUDP(n.guest, netip.AddrPortFrom(from, 5000), remote4)
			if err != nil {
				return err.Error()
			}
			defer c.Close()
			a, err := ask(c, "from "+from.String())
			seen = append(seen, outcome(err, a.Addr().String()))
		}
		return strings.Join(seen, ", ")
	})
	return list
}

// dialFrom opens a TCP connection from an address and port, sends a word, and reads it back.
func dialFrom(n *namespace, from netip.Addr, port uint16, remote netip.AddrPort) string {
	var c net.Conn
	err := n.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, port))}
		d.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
			return err
		}
		c, err = d.Dial("tcp", remote.String())
		return err
	})
	if err != nil {
		return outcome(err, "")
	}
	defer c.Close()
	c.(*net.TCPConn).SetLinger(0) // ends with a reset, so that the port is free at once
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("word")); err != nil {
		return outcome(err, "")
	}
	got := make([]byte, 4)
	_, err = c.Read(got)
	if err == nil && !bytes.Equal(got, []byte("word")) {
		return fmt.Sprintf("%q came back", got)
	}
	return outcome(err, "a word there and back")
}

// knock sends a datagram where nobody listens, and waits for what comes of it: the error that its
// kernel has for this very socket.
func knock(n *namespace, from netip.Addr, remote netip.AddrPort) string {
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(remote))
		return err
	})
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	if _, err := c.Write([]byte("anybody?")); err != nil {
		return outcome(err, "")
	}
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	_, err = c.Read(make([]byte, 8))
	return outcome(err, "answered")
}

// many asks from n sockets at once, and counts who has the answer to his own question, and in how
// many different ways they are seen.
func many(n *namespace, from, remote netip.Addr, count int) string {
	answered := 0
	ports := map[netip.AddrPort]bool{}
	var sockets []*net.UDPConn
	for range count {
		c, err := dialUDP(n, netip.AddrPortFrom(from, 0), remote)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		sockets = append(sockets, c)
	}
	for i, c := range sockets {
		if seen, err := ask(c, fmt.Sprintf("question %d", i)); err == nil {
			answered++
			ports[seen] = true
		}
	}
	return fmt.Sprintf("%d answered, seen from %d endpoints", answered, len(ports))
}

// The kernel's NAT is a second judge: the same clients do the same things behind weir and behind
// nftables, and see the same.
func TestKernelAgrees(t *testing.T) {
	see := func(start func(n *network)) map[string]string {
		n := newNetwork(t)
		serveEcho(t, n.internet, remote4, remote6)
		serveEcho(t, n.guest, web4, web6)
		start(n)
		seen := map[string]string{}
		for _, s := range sights() {
			seen[s.name] = s.see(n)
		}
		return seen
	}
	kernel := see(func(n *network) { kernelNAT(t, n) })
	ours := see(func(n *network) { startWeir(t, n, baseConfig) })
	good := 0
	for _, s := range sights() {
		if ours[s.name] != kernel[s.name] {
			t.Errorf("%s: behind weir %s; behind the kernel %s", s.name, ours[s.name], kernel[s.name])
		}
		if strings.Contains(kernel[s.name], "answered") || strings.Contains(kernel[s.name], "there and back") || kernel[s.name] == "refused" || strings.Contains(kernel[s.name], "seen") {
			good++
		}
	}
	if good < len(sights())*2/3 {
		t.Errorf("behind the kernel %d of %d things go well: the test says little: %v", good, len(sights()), kernel)
	}
}
