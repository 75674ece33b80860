// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/config"
)

// Backoff says how a worker rests while its queues are empty: it spins for Spin turns, then
// sleeps Least, and twice as long after every Step turns more, up to Most. A Go sleep on a locked
// thread takes a millisecond at least, nanosleep does not. docs/performance.md has what each
// setting costs and gives.
//
// Where all its queues have interrupts, the worker waits for them instead, and as long as it would
// sleep: they tell nothing of sessions that are to end, of a new generation, of what control or
// another worker puts into a ring.
type Backoff struct {
	Spin, Step  int
	Least, Most int64 // nanoseconds
}

// DefaultBackoff is for a worker that sleeps.
var DefaultBackoff = Backoff{Spin: 200, Step: 8, Least: 20_000, Most: 700_000}

// WokenBackoff is for a worker that waits for interrupts and takes nothing from other workers:
// shorter sleeps gain nothing there.
var WokenBackoff = Backoff{Spin: DefaultBackoff.Spin, Step: 1, Least: DefaultBackoff.Most, Most: DefaultBackoff.Most}

func (w *Worker) rest() (slept bool) {
	w.empty++
	if w.Idle == config.IdleBusy || w.empty < w.Backoff.Spin {
		return false
	}
	nap := min(w.Backoff.Least<<min((w.empty-w.Backoff.Spin)/w.Backoff.Step, 10), w.Backoff.Most)
	switch {
	case w.Waiter == nil:
		ts := unix.Timespec{Nsec: nap}
		unix.Syscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
		return true
	case !w.armed: // a packet may have come just before, for which no interrupt comes: one more turn
		w.Waiter.Enable()
		w.armed = true
		return false
	}
	if w.Waiter.Wait(time.Duration(nap)) {
		w.disarm()
	}
	return true
}

func (w *Worker) disarm() {
	w.Waiter.Disable()
	w.armed = false
}
