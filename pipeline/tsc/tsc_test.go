// SPDX-License-Identifier: Apache-2.0

package tsc

import (
	"testing"
	"time"
)

// What the counter says of a time lies between what the twin says of a shorter and of a longer one
// around it, whatever interrupts the test.
func TestAgreesWithTwin(t *testing.T) {
	hz := Hz(20 * time.Millisecond)
	outer := twin()
	first := Read()
	inner := twin()
	for twin()-inner < 50e6 {
	}
	innerEnd := twin()
	last := Read()
	outerEnd := twin()
	got := float64(last-first) / hz * 1e9
	const tolerance = 0.01 // of Hz
	if least, most := float64(innerEnd-inner)*(1-tolerance), float64(outerEnd-outer)*(1+tolerance); got < least || got > most {
		t.Errorf("%.0f ns by the counter at %.0f Hz, expected %.0f to %.0f", got, hz, least, most)
	}
}

func TestNeverGoesBack(t *testing.T) {
	before := Read()
	for range 1_000_000 {
		now := Read()
		if now < before {
			t.Fatalf("%d after %d", now, before)
		}
		before = now
	}
	if Overhead() > 1_000_000 {
		t.Errorf("reading twice in a row takes %d counts", Overhead())
	}
}
