// SPDX-License-Identifier: Apache-2.0

package cores

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestLeave(t *testing.T) {
	var before, after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	var cores []int
	for core := range 1024 {
		if before.IsSet(core) {
			cores = append(cores, core)
		}
	}
	t.Cleanup(func() { moveTo(&before) })
	// Workers on all cores: nothing can be left to them alone.
	if err := Leave(cores); err != nil {
		t.Fatal(err)
	}
	if unix.SchedGetaffinity(0, &after); after != before {
		t.Errorf("the process was moved although no core is free: %d cores left", after.Count())
	}
	if len(cores) < 2 {
		t.Fatal("this machine has one core; the test needs two")
	}
	if err := Leave(cores[1:]); err != nil {
		t.Fatal(err)
	}
	if unix.SchedGetaffinity(0, &after); after.Count() != 1 || !after.IsSet(cores[0]) {
		t.Errorf("%d cores left, expected only %d", after.Count(), cores[0])
	}
}
