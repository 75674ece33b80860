// SPDX-License-Identifier: Apache-2.0

package dpdk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// long is a wait that no test sits through.
const long = 10 * time.Second

// asleep starts a wait on a separate thread, and returns when that thread is inside it.
func asleep(t *testing.T, w *Waiter) (woken chan bool) {
	t.Helper()
	woken = make(chan bool, 1)
	tid, failed := make(chan int, 1), make(chan error, 1)
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		t.Fatal(err)
	}
	core := 0
	for !cpus.IsSet(core) {
		core++
	}
	go func() {
		if err := RegisterThread(core); err != nil {
			failed <- err
			return
		}
		defer UnregisterThread()
		tid <- unix.Gettid()
		woken <- w.Wait(long)
	}()
	var path string
	select {
	case n := <-tid:
		path = fmt.Sprintf("/proc/self/task/%d/syscall", n)
	case err := <-failed:
		t.Fatal(err)
	}
	in := fmt.Sprintf("%d ", unix.SYS_PPOLL)
	for {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(text), in) {
			return woken
		}
	}
}

// expectAwake fails the test if the wait ends otherwise than by an interrupt.
func expectAwake(t *testing.T, woken chan bool) {
	t.Helper()
	if !<-woken {
		t.Fatal("a waiting thread was not woken")
	}
}

// drain takes all that waits at a port's first queue, and returns how many there were.
func drain(p *Port) (n int) {
	var b RxBurst
	for p.Receive(0, &b, 32) > 0 {
		n += b.N
		Free(b.Mbufs[:b.N])
	}
	return n
}

// A tap's queue is a descriptor, whose interrupts are always on.
func TestWaitForTap(t *testing.T) {
	alone(t, ownNetwork, func(t *testing.T) {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil { // nobody sends but us
			t.Fatal(err)
		}
		pool, port := waitable(t, PortConfig{Name: "tap", Device: "net_tap0,iface=tap0"})
		raw, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		write := func() {
			t.Helper()
			frame := append([]byte("\x02\x00\x00\x00\x00\x77\x02\x00\x00\x00\x00\x01\x88\xb5"), make([]byte, 46)...)
			if err := unix.Sendto(raw, frame, 0, &unix.SockaddrLinklayer{Ifindex: link(t, "tap0").Index}); err != nil {
				t.Fatal(err)
			}
		}
		w := waiterFor(t, port)
		w.Enable()
		drain(port)
		w.Wait(0) // what was before

		for range 20 {
			if w.Wait(time.Millisecond) {
				t.Fatal("woken by nothing")
			}
		}
		for range 20 {
			woken := asleep(t, w)
			write()
			expectAwake(t, woken)
			if n := drain(port); n != 1 {
				t.Fatalf("received %d, want 1", n)
			}
			if w.Wait(time.Millisecond) {
				t.Fatal("woken again, although all is received")
			}
		}
		write() // between the last poll and the wait
		if !w.Wait(long) {
			t.Error("a frame that came before the wait does not end it")
		}
		if n := testing.AllocsPerRun(20, func() { w.Enable(); w.Wait(1000); w.Disable() }); n != 0 {
			t.Errorf("%v allocations", n)
		}
		end(t, pool, w, port)
	})
}

// virtio's interrupts can be switched. The other end of its queues is net_vhost, in the same
// process.
func TestWaitSwitched(t *testing.T) {
	alone(t, ownNetwork, func(t *testing.T) {
		socket := filepath.Join(t.TempDir(), "s")
		pool, host := waitable(t, PortConfig{Name: "host", Device: "net_vhost0,iface=" + socket})
		guest := openWaitable(t, pool, PortConfig{Name: "guest", Device: "net_virtio_user0,path=" + socket})
		w := waiterFor(t, guest)
		send := func() {
			t.Helper()
			m := make([]Mbuf, 1)
			if err := pool.Alloc(m); err != nil {
				t.Fatal(err)
			}
			m[0].SetLen(60)
			for host.Transmit(0, m) == 0 { // until both ends have come to terms
				time.Sleep(time.Millisecond)
			}
		}
		send()
		for drain(guest) == 0 {
		}
		w.Wait(0)

		for range 20 {
			w.Enable()
			woken := asleep(t, w)
			send()
			expectAwake(t, woken)
			w.Disable()
			if n := drain(guest); n != 1 {
				t.Fatalf("received %d, want 1", n)
			}
			send()
			if w.Wait(time.Millisecond) {
				t.Fatal("woken while switched off")
			}
			if n := drain(guest); n != 1 {
				t.Fatalf("received %d, want 1", n)
			}
		}
		end(t, pool, w, guest, host)
	})
}

// waitable starts EAL, and a port with interrupts.
func waitable(t *testing.T, cfg PortConfig) (*Mempool, *Port) {
	t.Helper()
	if err := Init(plain()); err != nil {
		t.Fatal(err)
	}
	pool, err := NewMempool("frames", 4095, DataRoom(1500), 0)
	if err != nil {
		t.Fatal(err)
	}
	return pool, openWaitable(t, pool, cfg)
}

func openWaitable(t *testing.T, pool *Mempool, cfg PortConfig) *Port {
	t.Helper()
	cfg.RxInterrupts, cfg.Mempool = true, func(int) (*Mempool, error) { return pool, nil }
	port, err := OpenPort(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := port.Start(); err != nil {
		t.Fatal(err)
	}
	return port
}

func waiterFor(t *testing.T, p *Port) *Waiter {
	t.Helper()
	if !p.RxInterrupts() {
		t.Fatalf("no interrupts: %v", p.RxInterruptsRefused())
	}
	w, err := NewWaiter()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(p, 0); err != nil {
		t.Fatal(err)
	}
	return w
}

// end closes all, in order, and finds every mbuf back.
func end(t *testing.T, pool *Mempool, w *Waiter, ports ...*Port) {
	t.Helper()
	err := w.Close()
	for _, p := range ports {
		err = errors.Join(err, p.Close())
	}
	if err = errors.Join(err, pool.Free(), Cleanup()); err != nil {
		t.Error(err)
	}
}
