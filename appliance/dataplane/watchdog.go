// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"golang.org/x/sys/unix"

	"weir/appliance/link"
)

// How long, in nanoseconds, a start may take, and a worker's turn, until the process counts as
// wedged.
const (
	startWithin = int64(120e9)
	turnWithin  = int64(2e9)
)

// watchdog tells the service manager, as long as it is so, that the process does what it is for. It
// is a goroutine of its own, so that what the others wait for does not make it silent, and
// allocates nothing.
func (d *plane) watchdog(n link.Notifier) {
	for {
		if d.well(link.Monotonic()) {
			n.Say(link.Watchdog)
		}
		ts := unix.Timespec{Nsec: 500_000_000}
		unix.Nanosleep(&ts, nil)
	}
}

// well reports whether a start has not taken too long yet, and all workers turn.
func (d *plane) well(now int64) bool {
	if since := d.starting.Load(); since != 0 {
		return now-since < startWithin
	}
	if !d.turning.Load() {
		return true
	}
	tick := uint32(uint64(now) / 1e6)
	for w := range d.state.Workers() {
		if int64(d.state.Idle(w, tick))*1e6 > turnWithin {
			return false
		}
	}
	return true
}
