// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"testing"
)

// A token bucket passes its burst at once, then its rate.
func TestBucket(t *testing.T) {
	var b bucket
	now := int64(5e9)
	take := func() (n int) {
		for b.take(now, 100, 50) {
			n++
		}
		return n
	}
	if n := take(); n != 50 {
		t.Errorf("a burst of %d, want 50", n)
	}
	now += 100e6
	if n := take(); n != 10 {
		t.Errorf("%d after 100 ms, want 10", n)
	}
	now += 3600e9
	if n := take(); n != 50 {
		t.Errorf("%d after an hour, want the burst of 50", n)
	}
	now -= 1e9
	if n := take(); n != 0 {
		t.Errorf("%d after the clock went back, want 0", n)
	}
}
