// SPDX-License-Identifier: Apache-2.0

package dpdk_test

import (
	"testing"

	"weir/dpdk"
	"weir/dpdk/dpdktest"
)

const burst = 32

// BenchmarkNull is one burst in and out: two C calls, with the mbufs' way from the pool and back.
func BenchmarkNull(b *testing.B) {
	port := dpdktest.Null(b, dpdktest.Mempool(b, 2047), 64)
	onWorker(b, func(int) {
		var rx dpdk.RxBurst
		for b.Loop() {
			port.Receive(0, &rx, burst)
			port.Transmit(0, rx.Mbufs[:rx.N])
		}
	})
}

// BenchmarkRing is one burst out and in again: two C calls and a ring.
func BenchmarkRing(b *testing.B) {
	pool := dpdktest.Mempool(b, 2047)
	port := dpdktest.Ring(b, pool)
	mbufs := dpdktest.Mbufs(b, pool, make([][]byte, burst)...)
	onWorker(b, func(int) {
		var rx dpdk.RxBurst
		for b.Loop() {
			port.Transmit(0, mbufs)
			port.Receive(0, &rx, burst)
		}
	})
	dpdk.Free(mbufs)
}

// BenchmarkEmpty is what a poll costs that finds nothing.
func BenchmarkEmpty(b *testing.B) {
	port := dpdktest.Ring(b, dpdktest.Mempool(b, 2047))
	onWorker(b, func(int) {
		var rx dpdk.RxBurst
		for b.Loop() {
			port.Receive(0, &rx, burst)
		}
	})
}

// BenchmarkAllocFree shows what registering a thread is worth.
func BenchmarkAllocFree(b *testing.B) {
	pool := dpdktest.Mempool(b, 2047)
	mbufs := make([]dpdk.Mbuf, burst)
	run := func(b *testing.B) {
		for b.Loop() {
			if err := pool.Alloc(mbufs); err != nil {
				b.Error(err)
				return
			}
			dpdk.Free(mbufs)
		}
	}
	b.Run("registered", func(b *testing.B) { onWorker(b, func(int) { run(b) }) })
	b.Run("unregistered", run)
}
