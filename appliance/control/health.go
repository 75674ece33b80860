// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"weir/appliance/link"
	"weir/config"
	"weir/metrics"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// Health is looked after by a goroutine of its own, which nothing that control does can keep from
// it, and which needs nothing but shared memory.
const (
	lookEvery = 250 * time.Millisecond
	// stallAfter is how long a worker, or control, may take for a turn; of control a turn is also a
	// reload.
	stallAfter   = 2 * time.Second
	controlStall = 15 * time.Second
	// killAfter is how long a data plane of this process's own may stand still until it is killed:
	// the next one goes on with its sessions. Elsewhere a service manager does that.
	killAfter = 10 * time.Second
)

// watched is what the configuration has of what can fail.
type watched struct {
	ports []config.Port
	hops  []watchedHop
	began time.Time
}

type watchedHop struct {
	port     int
	address  string
	family   inet.Family
	neighbor uint32
}

// healthWatch is what the loop and the goroutine have in common.
type healthWatch struct {
	what   atomic.Pointer[watched] // nil: nothing yet
	turned atomic.Int64            // nanoseconds of the monotonic clock: the loop's last turn
	stuck  atomic.Bool             // all workers stand still, for too long
}

// watchHealth tells the goroutine what to look at from now on.
func (c *control) watchHealth() {
	w := &watched{ports: c.cfg.Ports, began: time.Now()}
	for i := range c.gen.Hops {
		h := &c.gen.Hops[i]
		w.hops = append(w.hops, watchedHop{h.At.Port(), h.Addr.Netip().String(), h.Addr.Family(), h.Neighbor})
	}
	c.health.what.Store(w)
}

// lookAfter looks at the gateway's health until ctx ends, and logs what changes.
func (c *control) lookAfter(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var said []string
	var still time.Time // since when no worker turns
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		w := c.health.what.Load()
		if w == nil {
			continue
		}
		h := c.look(w, link.Monotonic())
		c.status.SetHealth(h)
		if !c.status.Up.Load() || !slices.Contains(h.Stalled, true) || slices.Contains(h.Stalled, false) {
			still = time.Now()
		}
		c.health.stuck.Store(time.Since(still) > killAfter)
		if !c.status.Up.Load() || time.Since(w.began) < stallAfter { // neighbors are being asked for
			continue
		}
		now := append(slices.Clone(h.Faults), h.Degraded...)
		for _, s := range now {
			if !slices.Contains(said, s) {
				c.log.Warn("health", "is", s)
			}
		}
		for _, s := range said {
			if !slices.Contains(now, s) {
				c.log.Info("health", "is_no_more", s)
			}
		}
		said = now
	}
}

// look finds out what passes, at a time in nanoseconds of the monotonic clock.
func (c *control) look(w *watched, now int64) *metrics.Health {
	h := &metrics.Health{Stalled: make([]bool, c.state.Workers())}
	fault := func(format string, args ...any) { h.Faults = append(h.Faults, fmt.Sprintf(format, args...)) }
	degraded := func(format string, args ...any) { h.Degraded = append(h.Degraded, fmt.Sprintf(format, args...)) }
	if now-c.health.turned.Load() > controlStall.Nanoseconds() {
		fault("control does not turn")
	}
	tick := uint32(uint64(now) / 1e6)
	for i := range h.Stalled {
		if h.Stalled[i] = c.state.Idle(i, tick) > uint32(stallAfter.Milliseconds()); h.Stalled[i] {
			fault("worker %d does not turn", i)
		}
	}
	outside, up := 0, 0
	for i, p := range w.ports {
		link := c.state.Device(i).LinkUp
		if p.Side == config.Outside {
			outside++
			if link {
				up++
			}
		}
		if !link {
			degraded("port %q has no link", p.Name)
		}
	}
	if outside > 0 && up == 0 {
		fault("no outside port has a link")
	}
	var all, alive [2]int
	for _, hop := range w.hops {
		is, _ := c.state.Neighbors.Get(hop.neighbor)
		all[hop.family]++
		n := metrics.NextHop{Port: w.ports[hop.port].Name, Address: hop.address, Up: is >= state.NeighborReachable}
		if n.Up {
			alive[hop.family]++
		} else {
			degraded("next hop %s at port %q does not answer", n.Address, n.Port)
		}
		h.NextHops = append(h.NextHops, n)
	}
	for family, name := range [...]string{inet.V4: "IPv4", inet.V6: "IPv6"} {
		if all[family] > 0 && alive[family] == 0 {
			degraded("no next hop for %s answers", name)
		}
	}
	if all[0]+all[1] > 0 && alive[0]+alive[1] == 0 {
		fault("no next hop answers")
	}
	return h
}
