// SPDX-License-Identifier: Apache-2.0

// Package tsc reads the processor's time stamp counter, for measurements of a burst or less: a
// clock of the system costs as much as a stage. It counts at a constant rate, the nominal one,
// whatever frequency the core runs at. On processors without an implementation here it counts
// nanoseconds of the system's monotonic clock.
package tsc

import "time"

var start = time.Now()

// twin is Read in pure Go.
func twin() uint64 { return uint64(time.Since(start)) }

// Hz measures how often Read counts in a second, for about so long.
func Hz(d time.Duration) float64 {
	t, c := pair()
	time.Sleep(d)
	t2, c2 := pair()
	return float64(c2-c) / t2.Sub(t).Seconds()
}

// pair reads both clocks as close to each other as they come in a few tries: an interruption
// between them is an error.
func pair() (t time.Time, count uint64) {
	best := time.Hour
	for range 10 {
		a := time.Now()
		c := Read()
		if d := time.Since(a); d < best {
			best, t, count = d, a.Add(d/2), c
		}
	}
	return t, count
}

// Overhead returns how much of an interval between two reads is the reading.
func Overhead() uint64 {
	least := ^uint64(0)
	for range 1000 {
		a := Read()
		least = min(least, Read()-a)
	}
	return least
}
