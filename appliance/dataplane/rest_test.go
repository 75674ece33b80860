// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"weir/config"
	"weir/dpdk"
	"weir/dpdk/dpdktest"
)

// A worker that waits for interrupts makes one more turn when they are on, wakes by a packet, and
// by time without one. virtio's interrupts can be switched; the other end of its queues is
// net_vhost, in the same process.
func TestRestByInterrupt(t *testing.T) {
	pool := dpdktest.Mempool(t, 4095)
	socket := filepath.Join(t.TempDir(), "s")
	open := func(device string) *dpdk.Port {
		return dpdktest.Open(t, dpdk.PortConfig{Name: device, Device: device, RxInterrupts: true, Mempool: dpdktest.From(pool)})
	}
	host := open("net_vhost0,iface=" + socket)
	guest := open("net_virtio_user0,path=" + socket)
	ring := dpdktest.Ring(t, pool)

	for name, ports := range map[string][]*dpdk.Port{"no port": nil, "none has them": {ring}, "one has them": {guest, ring}} {
		if d := (plane{ports: ports, log: slog.Default()}); d.waiter(0) != nil || d.waiters != nil {
			t.Errorf("%s: a waiter", name)
		}
	}
	d := plane{ports: []*dpdk.Port{guest, host}, log: slog.Default()}
	if d.waiter(1) != nil {
		t.Error("a worker without queues has a waiter")
	}
	w := Worker{Waiter: d.waiter(0), Backoff: Backoff{Spin: 3, Step: 1, Least: 1000, Most: 1000}}
	if w.Waiter == nil {
		t.Fatalf("no interrupts: %v", guest.RxInterruptsRefused())
	}
	defer w.Waiter.Close()

	send := func() {
		t.Helper()
		m := dpdktest.Mbufs(t, pool, make([]byte, 60))
		for host.Transmit(0, m) == 0 { // until both ends have come to terms
			time.Sleep(time.Millisecond)
		}
	}
	received := func() int {
		n := guest.Receive(0, &w.Rx, BurstSize)
		dpdk.Free(w.Rx.Mbufs[:n])
		return n
	}
	rest := func(slept, armed bool) {
		t.Helper()
		if got := w.rest(); got != slept || w.armed != armed {
			t.Fatalf("slept %t, armed %t; expected %t, %t", got, w.armed, slept, armed)
		}
	}
	send()
	for received() == 0 {
	}
	w.Waiter.Wait(0)

	rest(false, false) // spins
	rest(false, false)
	rest(false, true) // one more turn
	rest(true, true)  // time is over
	rest(true, true)
	w.Backoff.Least, w.Backoff.Most = int64(time.Minute), int64(time.Minute)
	send()
	rest(true, false) // woken, and looks at its queues
	if n := received(); n != 1 {
		t.Fatalf("received %d", n)
	}
	send() // before the interrupts are on again
	rest(false, true)
	if n := received(); n != 1 {
		t.Fatalf("received %d in the turn before the wait", n)
	}
	w.disarm()

	w.Idle = config.IdleBusy
	for range 10 {
		rest(false, false)
	}
}
