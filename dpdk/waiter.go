// SPDX-License-Identifier: Apache-2.0

package dpdk

// #cgo noescape weir_rx_interrupts
// #cgo nocallback weir_rx_interrupts
// #cgo noescape weir_wait
// #cgo nocallback weir_wait
// #include "dpdk.h"
// #include <rte_ethdev.h>
// #include <rte_interrupts.h>
import "C"

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Waiter waits for packets on receive queues that one thread polls. A packet that came before
// Enable rings no bell, so the thread switches on, polls once more, and only then waits:
//
//	w.Enable()
//	if port.Receive(0, &b, 32) == 0 {
//		w.Wait(time.Millisecond)
//	}
//	w.Disable()
type Waiter struct {
	epfd     int
	queues   []waited
	switched []C.struct_weir_queue // those whose interrupts are not always on
}

type waited struct {
	port  *Port
	queue int
}

// NewWaiter returns a waiter for no queue yet.
func NewWaiter() (*Waiter, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("waiter: epoll_create1: %w", err)
	}
	return &Waiter{epfd: fd}, nil
}

// Add waits for a queue of a started port with RxInterrupts, too. The port stops after the waiter
// is closed.
func (w *Waiter) Add(p *Port, queue int) error {
	if err := w.control(p, queue, C.RTE_INTR_EVENT_ADD); err != nil {
		return err
	}
	w.queues = append(w.queues, waited{p, queue})
	if p.switched {
		w.switched = append(w.switched, C.struct_weir_queue{port: p.id, queue: C.uint16_t(queue)})
	}
	return nil
}

func (w *Waiter) control(p *Port, queue int, op C.int) error {
	return p.call(fmt.Sprintf("rte_eth_dev_rx_intr_ctl_q (queue %d)", queue), func() C.int {
		return C.rte_eth_dev_rx_intr_ctl_q(p.id, C.uint16_t(queue), C.int(w.epfd), op, nil)
	})
}

// Enable switches the queues' interrupts on. A device that does not obey wakes nobody; Wait ends
// all the same.
func (w *Waiter) Enable() { w.turn(true) }

// Disable switches them off, so that packets which are polled for cost no interrupts.
func (w *Waiter) Disable() { w.turn(false) }

func (w *Waiter) turn(on bool) {
	if n := len(w.switched); n > 0 {
		C.weir_rx_interrupts(&w.switched[0], C.uint(n), C.bool(on))
	}
}

// Wait returns true when an interrupt came, or had come since the last Wait, and false after d, or
// earlier for a signal. It blocks the thread in C.
func (w *Waiter) Wait(d time.Duration) bool {
	return bool(C.weir_wait(C.int(w.epfd), C.int64_t(d)))
}

// Close ends the waiter, before its ports stop.
func (w *Waiter) Close() error {
	var errs []error
	for _, q := range w.queues {
		errs = append(errs, w.control(q.port, q.queue, C.RTE_INTR_EVENT_DEL))
	}
	return errors.Join(append(errs, unix.Close(w.epfd))...)
}
