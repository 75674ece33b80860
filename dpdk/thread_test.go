// SPDX-License-Identifier: Apache-2.0

package dpdk_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/dpdk"
	"weir/dpdk/dpdktest"
)

// allowed returns the cores that the calling thread may run on.
func allowed(tb testing.TB) unix.CPUSet {
	tb.Helper()
	var s unix.CPUSet
	if err := unix.SchedGetaffinity(0, &s); err != nil {
		tb.Fatal(err)
	}
	return s
}

// onWorker runs f on a registered thread, pinned to the first core we may use, that ends with it.
func onWorker(tb testing.TB, f func(core int)) {
	tb.Helper()
	dpdktest.Start(tb)
	cores, core := allowed(tb), 0
	for !cores.IsSet(core) {
		core++
	}
	failed := make(chan error)
	go func() {
		defer close(failed)
		if err := dpdk.RegisterThread(core); err != nil {
			failed <- err
			return
		}
		defer dpdk.UnregisterThread()
		f(core)
	}()
	if err := <-failed; err != nil {
		tb.Fatal(err)
	}
}

func TestRegisterThread(t *testing.T) {
	before := allowed(t)
	pool := dpdktest.Mempool(t, 255)
	for range 300 { // more threads than DPDK has numbers: they come back
		onWorker(t, func(core int) {
			if s := allowed(t); s.Count() != 1 || !s.IsSet(core) {
				t.Errorf("worker may run on %v, want core %d", s, core)
			}
			mbufs := make([]dpdk.Mbuf, 16)
			if err := pool.Alloc(mbufs); err != nil {
				t.Error(err)
			}
			dpdk.Free(mbufs)
		})
	}
	if pool.InUse() != 0 {
		t.Errorf("%d mbufs in use after their workers ended", pool.InUse())
	}
	if after := allowed(t); after != before {
		t.Errorf("our own thread may run on %v, before on %v", after, before)
	}
}

func TestRegisterThreadRefused(t *testing.T) {
	dpdktest.Start(t)
	before := allowed(t)
	for _, core := range []int{-1, 1023, 5000} {
		err := dpdk.RegisterThread(core)
		if err == nil || !strings.Contains(err.Error(), "name a core that exists") {
			t.Errorf("core %d: %v", core, err)
		}
	}
	if after := allowed(t); after != before {
		t.Errorf("refusal changed where the thread may run: %v, before %v", after, before)
	}
}
