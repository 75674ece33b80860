// SPDX-License-Identifier: Apache-2.0

// Package dpdk is a thin binding to libdpdk (22.11 and newer): EAL, threads, mempools, ports,
// bursts, interrupts, statistics. It is the only package with cgo. It knows mbufs, not gateways,
// and speaks DPDK's words.
//
// # Who owns an mbuf
//
// An mbuf has one owner at any time, which must transmit it or free it, once:
//
//	Mempool.Alloc   pool   -> caller
//	Port.Receive    device -> caller, the first RxBurst.N of RxBurst.Mbufs
//	Port.Transmit   caller -> device, the first n of the slice, n as returned; the rest stays
//	Free            caller -> pool
//
// The device gives transmitted mbufs back to their pool by itself, later. What RxBurst.Data and
// [Mbuf.Bytes] point at is the mbuf's memory: it is gone with the mbuf, and packets do not outlive
// the burst unless their mbuf is kept. A pool outlives every port that receives into it or was sent
// its mbufs; [Mempool.Free] refuses while any is out.
//
// # Which thread may do what
//
// [Init], [OpenPort], [NewMempool] and a port's Start, Stop and Close run one at a time on the
// EAL's thread, wherever they are called from. Devices are opened in that thread's
// network namespace: the process's. One queue is polled by one thread at a time. Threads that move
// bursts call [RegisterThread] first: without it DPDK has no cache of mbufs for them, and every
// burst goes to the shared pool. Stats, XStats and Link may be called beside the bursts. A [Waiter]
// belongs to the thread that polls its queues; Add and Close may be called elsewhere while that
// does not wait. Nothing may be called on a port during or after its Close, and no burst during its
// Stop.
//
// Receive, Transmit, Free, Alloc, Stats, XStats, Link and a Waiter's Enable, Disable and Wait do
// not allocate Go memory once their buffers have grown.
package dpdk
