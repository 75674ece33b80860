// SPDX-License-Identifier: Apache-2.0

package dpdk

// #include "dpdk.h"
// #include <rte_lcore.h>
import "C"

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// RegisterThread locks the calling goroutine to its thread, pins that to the core, and makes it
// known to DPDK, which gives it caches of mbufs. The goroutine stays locked, also after
// UnregisterThread: the pinned thread ends with it and no other goroutine meets it. So call it from
// a goroutine that ends when its work does.
func RegisterThread(core int) error {
	runtime.LockOSThread()
	err := register(core)
	if err != nil {
		runtime.UnlockOSThread()
	}
	return err
}

func register(core int) error {
	what := fmt.Sprintf("worker thread on core %d", core)
	if !running() {
		return fmt.Errorf("%s: %w", what, errNotRunning)
	}
	var before, cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("%s: sched_getaffinity: %w", what, err)
	}
	if core >= 0 { // Set would take -1 for 63; no core at all is refused below
		cpus.Set(core)
	}
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("%s: sched_setaffinity: %w: name a core that exists and that this process may use (taskset, cpuset)",
			what, err)
	}
	C.weir_log_begin()
	if rc := C.weir_thread_register(); rc < 0 {
		err := refusal(what, "rte_thread_register", rc)
		unix.SchedSetaffinity(0, &before)
		return err
	}
	return nil
}

// UnregisterThread gives the calling thread's caches and its number back to DPDK. No burst may be
// moved on it after.
func UnregisterThread() { C.rte_thread_unregister() }
