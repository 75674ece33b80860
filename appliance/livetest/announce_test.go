// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// An address that another host has had is weir's for its neighbors as soon as a reload has added
// it, both families: they need not wait until their entries end.
func TestAddressMovesHere(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.guest, web4, web6)
	config := replace(t, baseConfig, `ranges: [192.0.2.0/24, "2001:db8:1::/64"]`, `ranges: [192.0.2.0/24, "2001:db8:1::/64", 198.51.100.77/32, "2001:db8::77/128"]`)
	w := startWeir(t, n, config)
	n.internet.set(t, "net/ipv4/neigh/eth0/locktime", "0")
	wire := n.internet.link(t, "eth0").Attrs().Index
	was := net.HardwareAddr{2, 0, 0, 0, 0x77, 0x77}
	moving := []netip.Addr{netip.MustParseAddr("198.51.100.77"), netip.MustParseAddr("2001:db8::77")}
	for _, a := range moving {
		if err := n.internet.Links.NeighSet(&netlink.Neigh{LinkIndex: wire, State: netlink.NUD_STALE, IP: a.AsSlice(), HardwareAddr: was}); err != nil {
			t.Fatal(err)
		}
	}
	w.write(t, strings.Replace(config, `floating: [192.0.2.5, "2001:db8:1::5"]`, `floating: [198.51.100.77, "2001:db8::77"]`, 1))
	w.expectGeneration(t, 2, true)
	for _, a := range moving {
		eventually(t, patience, a.String()+" has moved", func() error {
			list, err := n.internet.Links.NeighList(wire, 0)
			if err != nil {
				return err
			}
			for _, e := range list {
				if e.IP.Equal(a.AsSlice()) && e.HardwareAddr.String() != was.String() && len(e.HardwareAddr) == 6 {
					return nil
				}
			}
			return fmt.Errorf("the neighbor's entry is as it was: %v", list)
		})
		if _, err := echoUDP(n.internet, map[bool]netip.Addr{true: remote4, false: remote6}[a.Is4()], a); err != nil {
			t.Errorf("%v: %v", a, err)
		}
	}
	w.stop(t)
}
