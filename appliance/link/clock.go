// SPDX-License-Identifier: Apache-2.0

package link

import (
	"time"

	"golang.org/x/sys/unix"
)

// The worker's clock is CLOCK_MONOTONIC, which all processes of a host share, so sessions keep
// their ages when a data plane is started again. time.Since reads it without a system call.
var (
	clockBase  = time.Now()
	clockStart = func() int64 {
		var t unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
			panic(err) // no Linux lacks it
		}
		return t.Nano()
	}()
)

// Monotonic returns the clock in nanoseconds.
func Monotonic() int64 { return clockStart + int64(time.Since(clockBase)) }
