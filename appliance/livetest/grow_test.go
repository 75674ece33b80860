// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// Those that a gateway grows to, and the last of them with what it is seen as.
const (
	grownInstances = 20_000
	grownAddresses = 6_000
)

var (
	grownPrivate  = grownAt(netip.MustParseAddr("10.64.0.0"), grownInstances-1)
	grownExternal = grownAt(netip.MustParseAddr("45.154.0.0"), (grownInstances-1)%grownAddresses)
)

func grownAt(base netip.Addr, n int) netip.Addr {
	b := base.As4()
	b[2], b[3] = byte(n>>8), byte(n)
	return netip.AddrFrom4(b)
}

// grownConfig is baseConfig with many more instances, each with a share of one of many SNAT
// addresses.
func grownConfig() string {
	var b strings.Builder
	b.WriteString(strings.NewReplacer("subnets: [172.30.0.0/24,", "subnets: [172.30.0.0/24, 10.64.0.0/16,", "ranges: [192.0.2.0/24,", "ranges: [192.0.2.0/24, 45.154.0.0/16,").Replace(baseConfig))
	for i := range grownInstances {
		fmt.Fprintf(&b, "      - {name: grown%d, addresses: [%v], external: {snat: [{address: %v, ports: %d-%d}]}}\n",
			i, grownAt(netip.MustParseAddr("10.64.0.0"), i), grownAt(netip.MustParseAddr("45.154.0.0"), i%grownAddresses), 2048*(1+i/grownAddresses), 2048*(1+i/grownAddresses)+2047)
	}
	return b.String()
}

// keepNeighbors makes the kernel keep what it has resolved, without asking again.
func (n *namespace) keepNeighbors(t *testing.T, link string) {
	t.Helper()
	list, err := n.Links.NeighList(n.link(t, link).Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, neighbor := range list {
		neighbor.State = netlink.NUD_PERMANENT
		if err := n.Links.NeighSet(&neighbor); err != nil {
			t.Fatal(err)
		}
	}
}

// A gateway with two instances grows to 20,000 with 6,000 SNAT addresses under traffic. First
// memory lacks, in control and in the data plane; then control is killed with the pages taken and
// nothing said of them, then the data plane before it has published; in the end each is killed once
// more. The session that was there keeps its port through all of it.
func TestGrow(t *testing.T) {
	n := newNetwork(t)
	n.guest.address(t, "eth0", grownPrivate.String()+"/32")
	serveEcho(t, n.internet, remote4)
	l := newLatches(t)
	w := startWeir(t, n, baseConfig, l.env())
	s := startFlowing(t, n.guest, batch4, remote4)
	for _, ns := range []*namespace{n.guest, n.internet} {
		ns.keepNeighbors(t, "eth0") // control, which answers ARP, is killed, and waits
	}
	plane := w.dataplane(t)
	flows := func(what string) {
		t.Helper()
		before := s.echoed()
		eventually(t, patience, what, func() error { return atLeast(s.echoed(), before+20) })
	}
	for _, lack := range []string{"segment.grow", "segment.populate"} {
		l.put(t, lack+".fail")
		w.write(t, grownConfig())
		refusals := strings.Count(w.log(), "the state cannot grow to")
		w.signal(t, syscall.SIGHUP)
		eventually(t, patience, lack+": the reload is refused", func() error { return atLeast(strings.Count(w.log(), "the state cannot grow to"), refusals+1) })
		w.expectGeneration(t, 1, false)
		flows("the stream flows after a refused reload")
		w.write(t, baseConfig)
		w.expectGeneration(t, 1, true)
		l.take(t, lack+".fail")
	}

	l.close(t, "grow.taken")
	w.write(t, grownConfig())
	l.reached(t, "grow.taken")
	w.signal(t, syscall.SIGKILL)
	w.wait(t, patience)
	l.open(t, "grow.taken")
	flows("the stream flows without control")
	l.close(t, "reload.before-publish")
	w.run(t, l.env())
	l.reached(t, "reload.before-publish")
	if now := w.dataplane(t); now != plane {
		t.Errorf("data plane %d was replaced by %d", plane, now)
	}
	flows("the stream flows while a generation waits")
	l.open(t, "reload.before-publish")
	w.ready(t)
	w.expectGeneration(t, 2, true)
	grown := func() {
		t.Helper()
		eventually(t, patience, "the last new instance has an answer", func() error {
			seen, err := echoUDP(n.guest, grownPrivate, remote4)
			if err == nil && seen.Addr() != grownExternal {
				t.Fatalf("the last instance is seen as %v, expected %v", seen, grownExternal)
			}
			return err
		})
		flows("the stream flows")
	}
	grown()
	s.endWhole(t)
	first := s.sources()
	if len(first) != 1 {
		t.Errorf("the stream came from %v, expected one address and port", first)
	}

	s = startFlowing(t, n.guest, batch4, remote4)
	if err := syscall.Kill(plane, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "another data plane forwards", func() error {
		if v, err := w.tryScrape(); err != nil || v["weir_dataplane_restarts_total"] != 1 {
			return fmt.Errorf("restarts %v, %v", v["weir_dataplane_restarts_total"], err)
		}
		return nil
	})
	w.ready(t)
	grown()
	w.signal(t, syscall.SIGKILL)
	w.wait(t, patience)
	w.run(t)
	w.ready(t)
	w.expectLog(t, "took over a data plane that forwards")
	w.expectGeneration(t, 2, true)
	grown()
	s.end()
	if list := s.sources(); len(list) != 1 {
		t.Errorf("the stream came from %v over the deaths, expected one address and port", list)
	}
	time.Sleep(lossTime) // what is on its way
	w.expectBalance(t)
	w.expectTables(t)
	w.stop(t)
}
