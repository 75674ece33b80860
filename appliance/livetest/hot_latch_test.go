// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weir/deploy/lab"
)

// latches is a directory of latches: the program's named points wait where one is closed.
type latches string

func newLatches(t *testing.T) latches { return latches(t.TempDir()) }

func (l latches) env() string { return "WEIR_LATCHES=" + string(l) }

func (l latches) put(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(string(l), name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (l latches) take(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(string(l), name)); err != nil {
		t.Fatal(err)
	}
}

// close makes the program wait at a point, open lets it go on.
func (l latches) close(t *testing.T, point string) { l.put(t, point+".wait") }
func (l latches) open(t *testing.T, point string)  { l.take(t, point+".wait") }

// reached waits until the program waits at a point.
func (l latches) reached(t *testing.T, point string) {
	t.Helper()
	eventually(t, patience, "it comes to "+point, func() error {
		_, err := os.Stat(filepath.Join(string(l), point+".reached"))
		return err
	})
}

// The three points of a reload, in order.
var reloadPoints = []string{"reload.before-publish", "reload.published", "reload.before-release"}

// probe is a question about one address, from the guest to the Internet or the other way round.
type probe struct {
	inbound  bool
	protocol string     // udp, tcp, icmp
	of       netip.Addr // outbound: the private address it leaves from; inbound: the public one it goes to
	// What the other side sees: its source address, or the private address that it arrived at.
	// Zero: nothing arrives.
	old, new netip.Addr
}

func (p probe) String() string {
	if p.inbound {
		return p.protocol + " to " + p.of.String()
	}
	return p.protocol + " from " + p.of.String()
}

// lossTime is how long a probe waits for what must not come.
const lossTime = 150 * time.Millisecond

// ask sends the probe as a flow of its own and returns what the other side saw, zero for no answer.
// A ping's answer does not say that: any answer counts as what is wanted.
func (p probe) ask(n *network, want netip.Addr) (netip.Addr, error) {
	in, from, to := n.guest, p.of, remote4
	if p.inbound {
		in, from, to = n.internet, remote4, p.of
	}
	limit := lossTime
	if want.IsValid() {
		limit = 3 * time.Second
	}
	switch p.protocol {
	case "udp", "tcp":
		return whoAmI(in, p.protocol, from, to, limit)
	}
	ok, err := pingWithin(in, from, to, limit)
	if !ok {
		return netip.Addr{}, err
	}
	if !want.IsValid() {
		want = p.of // an answer where none was expected
	}
	return want, err
}

// whoAmI asks who answers at remote (serveIdent) what weir made of the address that it translates;
// zero: no answer.
func whoAmI(n *namespace, protocol string, from, remote netip.Addr, limit time.Duration) (netip.Addr, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		d := net.Dialer{Timeout: limit}
		if protocol == "tcp" {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		} else {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		}
		c, err = d.Dial(protocol+"4", netip.AddrPortFrom(remote, identPort).String())
		return err
	})
	if err != nil {
		return netip.Addr{}, silence(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write([]byte("who")); err != nil {
		return netip.Addr{}, silence(err)
	}
	buf := make([]byte, 128)
	k, err := c.Read(buf)
	if err != nil {
		return netip.Addr{}, silence(err)
	}
	return netip.ParseAddr(string(buf[:k]))
}

// silence turns a lack of answer, or an ICMP error, into no error.
func silence(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() || strings.Contains(err.Error(), "no route to host") ||
		strings.Contains(err.Error(), "connection refused") {
		return nil
	}
	return err
}

// identPort is where serveIdent answers.
const identPort = 7008

// serveIdent tells who asks by UDP and TCP, until the test ends, what it sees of the address that
// weir translates: of the asker's, if peer is set, else of its own.
func serveIdent(t *testing.T, n *namespace, peer bool, addresses ...netip.Addr) {
	t.Helper()
	for _, a := range addresses {
		answer := func(from netip.AddrPort) []byte {
			if peer {
				return []byte(from.Addr().Unmap().String())
			}
			return []byte(a.String())
		}
		serve(t, n, lab.Service{
			Port: identPort,
			UDP:  func(_ []byte, from netip.AddrPort) []byte { return answer(from) },
			TCP: func(c *net.TCPConn) {
				if _, err := c.Read(make([]byte, 128)); err == nil {
					c.Write(answer(c.RemoteAddr().(*net.TCPAddr).AddrPort()))
				}
			},
		}, a)
	}
}

// pingWithin sends one echo request and reports whether its reply comes.
func pingWithin(n *namespace, from, remote netip.Addr, limit time.Duration) (bool, error) {
	_, err := n.Ping(from, remote, nil, 1, limit)
	if err == nil || errors.Is(err, lab.ErrNoAnswer) {
		return err == nil, nil
	}
	return false, silence(err)
}

// A reload stopped at each of its points: every packet is handled wholly by the old configuration
// or wholly by the new one. Before the new one is published that is the old one, once no worker has
// the old one any more it is the new one.
func TestHotLatches(t *testing.T) {
	gone4, came4 := netip.MustParseAddr("172.30.0.8"), netip.MustParseAddr("172.30.0.9")
	public := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}) }
	nothing := netip.Addr{}

	n := newNetwork(t)
	n.guest.address(t, "eth0", gone4.String()+"/24", came4.String()+"/24")
	serveEcho(t, n.internet, remote4)
	serveIdent(t, n.internet, true, remote4)
	serveIdent(t, n.guest, false, web4, gone4, came4)
	// With a MAC, for control waits while its data plane does, and resolves no neighbors.
	mac := n.guest.link(t, "eth0").Attrs().HardwareAddr
	instance := func(name string, private netip.Addr, external int) string {
		return fmt.Sprintf("      - {name: %s, addresses: [%v], mac: \"%v\", external: {floating: [%v]}}\n", name, private, mac, public(external))
	}
	before := baseConfig + instance("gone", gone4, 8)
	// web's address changes, gone goes with its address, which another one gets.
	after := replace(t, baseConfig, "floating: [192.0.2.5, ", "floating: [192.0.2.6, ") + instance("came", came4, 8)
	probes := []probe{
		{false, "", batch4, batchPublic4, batchPublic4}, // kept
		{false, "", web4, public(5), public(6)},         // changed
		{true, "", public(5), web4, nothing},
		{true, "", public(6), nothing, web4},
		{false, "", gone4, public(8), nothing}, // removed
		{false, "", came4, nothing, public(8)},
		{true, "", public(8), gone4, came4},
	}

	for _, stopAt := range reloadPoints {
		t.Run(stopAt, func(t *testing.T) {
			l := newLatches(t)
			w := startWeir(t, n, before, l.env())
			for _, private := range []netip.Addr{web4, batch4, gone4} {
				eventually(t, patience, "neighbors are resolved", func() error {
					if seen, err := whoAmI(n.guest, "udp", private, remote4, time.Second); err != nil || !seen.IsValid() {
						return fmt.Errorf("no answer for %v, %v", private, err)
					}
					return nil
				})
			}
			kept := startStream(t, n.guest, batch4, remote4, 2*time.Millisecond)
			eventually(t, patience, "the stream flows", func() error { return atLeast(kept.echoed(), 10) })

			l.close(t, stopAt)
			w.write(t, after)
			l.reached(t, stopAt)
			for _, p := range probes {
				for _, p.protocol = range []string{"udp", "tcp", "icmp"} {
					p.expect(t, n, stopAt)
				}
			}
			l.open(t, stopAt)
			w.expectGeneration(t, 2, true)
			for _, p := range probes {
				for _, p.protocol = range []string{"udp", "tcp", "icmp"} {
					p.expect(t, n, "done")
				}
			}
			kept.end()
			kept.expectWhole(t)
			if list := kept.sources(); len(list) != 1 {
				t.Errorf("the stream of a kept address came from %v, expected one address and port", list)
			}
			w.expectBalance(t)
			w.expectTables(t)
			w.stop(t)
		})
	}
}

// expect sends the probe while a reload waits at point.
func (p probe) expect(t *testing.T, n *network, point string) {
	t.Helper()
	want := p.new
	if point == "reload.before-publish" {
		want = p.old
	}
	if got, err := p.ask(n, want); err != nil || got != want {
		t.Errorf("%s: %v: seen as %v, %v; expected %v", point, p, got, err, want)
	}
}
