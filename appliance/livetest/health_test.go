// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// says waits until /readyz has all of the texts.
func (w *weir) says(t *testing.T, texts ...string) {
	t.Helper()
	eventually(t, 30*time.Second, "/readyz", func() error {
		page, err := w.web.Get("/readyz")
		page += fmt.Sprint(err)
		for _, s := range texts {
			if !strings.Contains(page, s) {
				return fmt.Errorf("%q has no %q", page, s)
			}
		}
		return nil
	})
}

// A next hop that falls silent is seen within seconds, in /readyz, metrics and log, and so is its
// return.
func TestNextHopsDie(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4, remote6)
	w := startWeir(t, n, baseConfig)
	w.says(t, "ready\n")
	remove := func(prefix string) {
		t.Helper()
		a, err := netlink.ParseAddr(prefix)
		if err == nil {
			err = n.internet.Links.AddrDel(n.internet.link(t, "eth0"), a)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	remove("198.51.100.1/24")
	w.says(t, "ready\n", "degraded: next hop 198.51.100.1 at port \"outside\" does not answer", "degraded: no next hop for IPv4 answers")
	remove("2001:db8::1/64")
	w.says(t, "503", "not ready: no next hop answers")
	s := w.scrape(t)
	for series, want := range map[string]float64{`weir_next_hop_up{address="198.51.100.1",port="outside"}`: 0, "weir_ready": 0, `weir_worker_stalled{worker="0"}`: 0} {
		if v := s.get(t, series); v != want {
			t.Errorf("%s is %v, expected %v", series, v, want)
		}
	}
	w.expectLog(t, "no next hop answers", "2001:db8::1")
	n.internet.address(t, "eth0", "198.51.100.1/24", "2001:db8::1/64")
	w.says(t, "ready\n")
	w.expectLog(t, "is_no_more")
	w.stop(t)
}

// A data plane that stands still is neither ready nor kept: another one goes on with its sessions.
func TestStuckDataplane(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4, remote6)
	w := startWeir(t, n, baseConfig)
	s := startFlowing(t, n.guest, batch4, remote4)
	stuck := w.dataplane(t)
	if err := syscall.Kill(stuck, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.says(t, "503", "not ready: worker 0 does not turn")
	eventually(t, 60*time.Second, "another data plane", func() error {
		if all := w.dataplanes(t); len(all) != 1 || all[0] == stuck {
			return fmt.Errorf("there are %v", all)
		}
		return nil
	})
	w.expectLog(t, "killing the data plane")
	w.says(t, "ready\n")
	flowed := s.echoed()
	eventually(t, patience, "the stream flows again", func() error { return atLeast(s.echoed(), flowed+20) })
	endAll([]*stream{s})
	if list := s.sources(); len(list) != 1 {
		t.Errorf("it came from %v, expected one address and port before and after", list)
	}
	w.expectBalance(t)
	w.stop(t)
}
