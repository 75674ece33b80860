// SPDX-License-Identifier: Apache-2.0

// Package cores binds processes to processor cores.
package cores

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Leave moves this process off the cores that workers poll, as far as others are left: its garbage
// collector would else take turns with them. A data plane that it starts begins on the same cores,
// and pins its workers itself.
func Leave(workers []int) error {
	var mask unix.CPUSet
	if err := unix.SchedGetaffinity(0, &mask); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	for _, core := range workers {
		mask.Clear(core)
	}
	if mask.Count() == 0 {
		return nil
	}
	return moveTo(&mask)
}

// moveTo binds all threads of the process.
func moveTo(mask *unix.CPUSet) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		// A thread may have ended meanwhile; one that begins has the mask of its parent.
		if err := unix.SchedSetaffinity(id, mask); err != nil && err != unix.ESRCH {
			return fmt.Errorf("sched_setaffinity: %w", err)
		}
	}
	return nil
}
