// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var other4 = netip.MustParseAddr("172.30.0.8") // SNAT by the address that batch4 has, with other ports

// fragmentConfig has a second guest behind batch's address, and an outside link that is narrower
// than the inside one. Its ports are net_pcap's: for net_af_packet the kernel puts IPv4 fragments
// together before weir sees them (PACKET_FANOUT_FLAG_DEFRAG).
var fragmentConfig = strings.NewReplacer(
	`"net_af_packet0,iface=inside,framecnt=4096"`, `"net_pcap0,rx_iface_in=inside,tx_iface=inside", mac: "02:00:00:00:00:01"`,
	`"net_af_packet1,iface=outside,framecnt=4096"`, "\"net_pcap1,rx_iface_in=outside,tx_iface=outside\"\n    mac: \"02:00:00:00:00:02\"",
	"    side: outside\n", "    side: outside\n    mtu: 1400\n",
	"      - name: batch\n", "      - {name: other, addresses: [172.30.0.8], external: {snat: [{address: 192.0.2.14, ports: 20000-29999}]}}\n      - name: batch\n",
).Replace(baseConfig)

// Two guests behind one address send datagrams in pieces, with the same identifications, at the
// same time and out of order, to one receiver: every datagram arrives as it was sent (RFC 4963, RFC
// 6864).
func TestFragmentsOfTwoGuests(t *testing.T) {
	n := newNetwork(t)
	n.guest.address(t, "eth0", "172.30.0.8/24")
	w := startWeir(t, n, fragmentConfig)

	const rounds, size = 250, 3000
	var server *net.UDPConn
	err := n.internet.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(remote4, echoPort)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	server.SetReadBuffer(8 << 20)

	raw := -1
	err = n.guest.Do(func() (err error) {
		raw, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(raw)

	// Each guest's first datagram goes alone, so that no other waits for a MAC.
	random := rand.NewChaCha8([32]byte{1})
	sent := map[[sha256.Size]byte]netip.Addr{}
	datagram := func(guest netip.Addr) []byte {
		b := make([]byte, size)
		random.Read(b)
		sent[sha256.Sum256(b)] = guest
		return b
	}
	to := &unix.SockaddrInet4{Addr: remote4.As4()}
	send := func(packets ...[]byte) {
		for _, p := range packets {
			if err := unix.Sendto(raw, p, 0, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	source := map[netip.Addr]netip.AddrPort{}
	receive := func(count int) {
		buf := make([]byte, size+1)
		for range count {
			server.SetReadDeadline(time.Now().Add(3 * time.Second))
			k, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatalf("%d datagrams are missing: %v", len(sent), err)
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			sum := sha256.Sum256(buf[:k])
			guest, ok := sent[sum]
			if !ok {
				t.Fatalf("%d bytes from %v that nobody sent", k, from)
			}
			delete(sent, sum)
			if source[guest] == (netip.AddrPort{}) {
				source[guest] = from
			}
			if from != source[guest] || from.Addr() != batchPublic4 {
				t.Fatalf("%v's datagram comes from %v, others from %v", guest, from, source[guest])
			}
		}
	}
	for _, guest := range []netip.Addr{batch4, other4} {
		send(udpFragments(guest, remote4, 1, datagram(guest), 1000, 2000)...)
		receive(1)
	}
	if source[batch4] == source[other4] {
		t.Fatalf("both guests are %v", source[batch4])
	}
	for i := range rounds {
		id := uint16(1 + i&7) // the kernel replaces 0
		a, b := udpFragments(batch4, remote4, id, datagram(batch4), 1000, 2000), udpFragments(other4, remote4, id, datagram(other4), 1000, 2000)
		all := [][]byte{a[0], b[0], a[1], b[1], a[2], b[2]}
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		send(all...)
		if i%10 == 9 { // what is on the way fits the receiver's memory for fragments
			receive(20)
		}
	}
	if len(sent) != 0 {
		t.Errorf("%d datagrams did not arrive", len(sent))
	}
	s := w.expectBalance(t)
	for _, r := range []string{"fragment_overlap", "fragment_limit", "fragment_timeout", "bad_fragment"} {
		if v := s.get(t, reason(r)); v != 0 {
			t.Errorf("%v dropped as %s", v, r)
		}
	}
	w.stop(t)
}

// udpFragments makes the pieces of an IPv4 UDP datagram to the echo port, at these offsets of its
// payload.
func udpFragments(from, to netip.Addr, id uint16, payload []byte, at ...int) (pieces [][]byte) {
	u := binary.BigEndian.AppendUint16(nil, 4000)
	u = binary.BigEndian.AppendUint16(u, echoPort)
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(payload)))
	u = append(append(u, 0, 0), payload...)
	sum := uint32(17 + len(u))
	for _, b := range [][]byte{from.AsSlice(), to.AsSlice(), u} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(u[6:], ^uint16(sum))
	at = append(append([]int{0}, at...), len(u))
	for i := range len(at) - 1 {
		word := uint16(at[i] / 8)
		if i < len(at)-2 {
			word |= 0x2000
		}
		p := []byte{0x45, 0, 0, 0} // length and checksum are the kernel's
		p = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(p, id), word)
		p = append(append(append(p, 64, 17, 0, 0), from.AsSlice()...), to.AsSlice()...)
		pieces = append(pieces, append(p, u[at[i]:at[i+1]]...))
	}
	return pieces
}

// Datagrams longer than any link, both ways, both families, 1:1 and SNAT, as the kernels cut and
// join them; and, without DF, those that fit the inside link and not the outside one.
func TestLongDatagrams(t *testing.T) {
	n := newNetwork(t)
	for _, remote := range []netip.Addr{remote4, remote6} {
		serveLong(t, n.internet, remote)
	}
	for _, guest := range []netip.Addr{web4, web6} {
		serveLong(t, n.guest, guest)
	}
	// The far side knows how long its packets may be; the guests do not.
	eth := n.internet.link(t, "eth0")
	if err := n.internet.Links.LinkSetMTU(eth, 1400); err != nil {
		t.Fatal(err)
	}
	guest := n.guest.link(t, "eth0")
	w := startWeir(t, n, fragmentConfig)
	for _, f := range []struct {
		name     string
		in       *namespace
		from, to netip.Addr
		mtu      int // of the guests' link
	}{
		{"out, 1:1, IPv4", n.guest, web4, remote4, 1500},
		{"out, SNAT, IPv4", n.guest, batch4, remote4, 1500},
		{"in, 1:1, IPv4", n.internet, remote4, webPublic4, 1500},
		{"out, 1:1, IPv6", n.guest, web6, remote6, 1400},
		{"out, SNAT, IPv6", n.guest, batch6, remote6, 1400},
		{"in, 1:1, IPv6", n.internet, remote6, webPublic6, 1400},
	} {
		t.Run(f.name, func(t *testing.T) {
			if err := n.guest.Links.LinkSetMTU(guest, f.mtu); err != nil {
				t.Fatal(err)
			}
			before := w.scrape(t)
			for _, size := range []int{100, 1372, 1373, 1400, 1472, 1473, 4000, 9000} {
				if err := echoLong(f.in, f.from, f.to, size); err != nil {
					t.Errorf("%d bytes: %v", size, err)
				}
			}
			s := w.expectBalance(t)
			d := s.sum("weir_fragmented_packets_total") - before.sum("weir_fragmented_packets_total")
			if cut := f.mtu > 1400; cut != (d > 0) {
				t.Errorf("weir made %v extra pieces", d)
			}
		})
	}
	w.stop(t)
}

// mayFragment lets a socket send packets without DF.
func mayFragment(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT); failed == unix.ENOPROTOOPT {
			failed = nil // IPv6
		}
	})
	if err == nil {
		err = failed
	}
	return err
}

// serveLong echoes datagrams of any length.
func serveLong(t *testing.T, n *namespace, at netip.Addr) {
	t.Helper()
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		if c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, echoPort))); err == nil {
			err = mayFragment(c)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
}

// echoLong sends one datagram of random bytes and compares its echo.
func echoLong(n *namespace, from, to netip.Addr, size int) error {
	c, err := dialUDP(n, netip.AddrPortFrom(from, 0), to)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := mayFragment(c); err != nil {
		return err
	}
	sent := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(size)}).Read(sent)
	if _, err := c.Write(sent); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	got := make([]byte, 65536)
	k, err := c.Read(got)
	if err == nil && !bytes.Equal(got[:k], sent) {
		err = fmt.Errorf("%d other bytes came back", k)
	}
	return err
}
