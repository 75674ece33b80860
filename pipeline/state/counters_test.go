// SPDX-License-Identifier: Apache-2.0

package state

import (
	"testing"

	"weir/pipeline/drop"
)

// A worker that dies between two stores leaves sums that do not agree; settle makes them agree,
// whichever two these were.
func TestSettleBetweenStores(t *testing.T) {
	whole := func() *Counters {
		c := new(Counters)
		c.Received[0], c.Transmitted[1], c.Forwarded, c.Originated, c.Punted, c.Dropped[drop.NoRoute] = 100, 60, 50, 10, 20, 30
		return c
	}
	for _, s := range []struct {
		name      string
		die       func(c *Counters)
		forwarded uint64
		restart   uint64
	}{
		{"nothing in hand", func(c *Counters) {}, 50, 0},
		{"received, and nothing yet", func(c *Counters) { c.Received[0] += 7 }, 50, 7},
		{"held", func(c *Counters) { c.Received[0] += 7; c.Held = 7 }, 50, 7},
		{"between Transmitted and Forwarded", func(c *Counters) { c.Received[0] += 7; c.Transmitted[1] += 7 }, 57, 0},
		{"the same, and some refused", func(c *Counters) { c.Received[0] += 7; c.Transmitted[1] += 5 }, 55, 2},
		{"between Originated and Transmitted", func(c *Counters) { c.Originated += 7 }, 50, 0},
		{"the same, and nothing sent before", func(c *Counters) { *c = Counters{Originated: 7} }, 0, 0},
	} {
		t.Run(s.name, func(t *testing.T) {
			c := whole()
			s.die(c)
			c.settle()
			sum := c.Totals()
			if sum.Received != sum.Forwarded+sum.Punted+sum.Dropped || sum.Transmitted != sum.Forwarded+sum.Fragmented+sum.Originated {
				t.Errorf("the sums do not agree: %+v", sum)
			}
			if c.Forwarded != s.forwarded || c.Dropped[drop.Restart] != s.restart {
				t.Errorf("%d forwarded, %d dropped at the restart; want %d, %d", c.Forwarded, c.Dropped[drop.Restart], s.forwarded, s.restart)
			}
		})
	}
}
