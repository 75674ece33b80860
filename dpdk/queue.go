// SPDX-License-Identifier: Apache-2.0

package dpdk

// #cgo noescape weir_receive
// #cgo nocallback weir_receive
// #cgo noescape weir_transmit
// #cgo nocallback weir_transmit
// #include "dpdk.h"
import "C"

import "unsafe"

// MaxBurst is the most that one Receive returns.
const MaxBurst = C.WEIR_MAX_BURST

// RxBurst is what one Receive fills in: the first N entries of each array. Len is of the first
// segment; a packet with Segs > 1 was longer than one mbuf, and PktLen is all of it, as the driver
// claims.
type RxBurst struct { // struct weir_rx_burst in C
	N      int
	Mbufs  [MaxBurst]Mbuf
	Data   [MaxBurst]unsafe.Pointer
	Len    [MaxBurst]uint16
	Segs   [MaxBurst]uint16
	PktLen [MaxBurst]uint32
}

// Receive takes up to max packets, at most MaxBurst, from a queue, in one C call, and returns how
// many. Their first cache lines are on their way to the cache. The caller owns the mbufs. Some
// drivers give nothing for a max below 8.
func (p *Port) Receive(queue int, b *RxBurst, max int) int {
	if uint(queue) >= uint(p.rxQueues) {
		panic("dpdk: " + p.object + ": no such receive queue")
	}
	C.weir_receive(p.id, C.uint16_t(queue), (*C.struct_weir_rx_burst)(unsafe.Pointer(b)), C.uint16_t(min(max, MaxBurst)))
	return b.N
}

// Transmit hands packets to a queue, in one C call, and returns how many were taken, from the
// front. They are the device's; the rest is still the caller's. Taken is not sent: see TxErrors in
// Stats.
func (p *Port) Transmit(queue int, mbufs []Mbuf) int {
	if uint(queue) >= uint(p.txQueues) {
		panic("dpdk: " + p.object + ": no such transmit queue")
	}
	if len(mbufs) == 0 {
		return 0
	}
	return int(C.weir_transmit(p.id, C.uint16_t(queue), (*C.uintptr_t)(unsafe.Pointer(&mbufs[0])), C.uint16_t(len(mbufs))))
}

// The two forms of a burst are one layout: these do not compile otherwise.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(RxBurst{})-C.sizeof_struct_weir_rx_burst]
	_ = [1]struct{}{}[unsafe.Offsetof(RxBurst{}.Data)-unsafe.Offsetof(C.struct_weir_rx_burst{}.data)]
	_ = [1]struct{}{}[unsafe.Offsetof(RxBurst{}.Segs)-unsafe.Offsetof(C.struct_weir_rx_burst{}.segs)]
	_ = [1]struct{}{}[unsafe.Offsetof(RxBurst{}.PktLen)-unsafe.Offsetof(C.struct_weir_rx_burst{}.pkt_len)]
)
