// SPDX-License-Identifier: Apache-2.0

package dpdk

// #cgo noescape weir_alloc
// #cgo nocallback weir_alloc
// #include <stdlib.h>
// #include "dpdk.h"
// #include <rte_mbuf.h>
// #include <rte_mempool.h>
import "C"

import (
	"errors"
	"fmt"
	"math"
	"unsafe"
)

// Headroom is what a fresh mbuf keeps free before its data, in bytes.
const Headroom = C.WEIR_HEADROOM

// ErrNoMbufs: the pool has fewer mbufs left than were asked for.
var ErrNoMbufs = errors.New("mempool: too few mbufs left")

// Mempool is a pool of mbufs of one size. It may be used from any thread.
type Mempool struct {
	name     string
	dataRoom int
	pool     *C.struct_rte_mempool
}

// DataRoom returns the data room that keeps every frame of an MTU in one mbuf: headroom, Ethernet
// header, two VLAN tags, CRC. Devices count their receive buffers in KiB, and drivers expect 2 KiB,
// so it is rounded up to these.
func DataRoom(mtu int) int {
	const overhead = 14 + 2*4 + 4
	frame := max(mtu+overhead, 2048)
	return min(Headroom+(frame+1023)/1024*1024, math.MaxUint16)
}

// NewMempool makes a pool of n mbufs of dataRoom bytes each, headroom included, on a NUMA node (-1:
// any). The best n for DPDK is a power of two less one. A registered thread caches up to n/8 of
// them, at most 256, and half as much again for a moment: plan n for what ports' queues hold plus
// that for each thread.
func NewMempool(name string, n int, dataRoom int, socket int) (*Mempool, error) {
	if n < 1 || n > math.MaxInt32 {
		return nil, fmt.Errorf("mempool %q: %d mbufs, expected 1 to %d", name, n, math.MaxInt32)
	}
	if dataRoom <= Headroom || dataRoom > math.MaxUint16 {
		return nil, fmt.Errorf("mempool %q: data room of %d bytes, expected %d to %d", name, dataRoom, Headroom+1, math.MaxUint16)
	}
	p := &Mempool{name: name, dataRoom: dataRoom}
	object := fmt.Sprintf("mempool %q of %d mbufs of %d bytes on socket %d", name, n, dataRoom, socket)
	err := call(object, "rte_pktmbuf_pool_create", func() C.int {
		cname := C.CString(name)
		defer C.free(unsafe.Pointer(cname))
		return C.weir_pool_create(cname, C.uint(n), C.uint(min(n/8, 256)), C.uint16_t(dataRoom), C.int(socket), &p.pool)
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Alloc fills mbufs with empty ones from the pool, which the caller owns then: all, or none and
// ErrNoMbufs.
func (p *Mempool) Alloc(mbufs []Mbuf) error {
	if len(mbufs) == 0 {
		return nil
	}
	if C.weir_alloc(p.pool, (*C.uintptr_t)(unsafe.Pointer(&mbufs[0])), C.uint(len(mbufs))) != 0 {
		return ErrNoMbufs
	}
	return nil
}

// InUse returns how many mbufs are with callers and devices. It is exact only while nobody takes or
// frees any.
func (p *Mempool) InUse() int { return int(C.rte_mempool_in_use_count(p.pool)) }

// Available returns how many mbufs are in the pool or cached by threads. Another thread's cache is
// of no use to Alloc.
func (p *Mempool) Available() int { return int(C.rte_mempool_avail_count(p.pool)) }

// Free returns the pool's memory to EAL. It refuses while mbufs are in use: their owners would
// write into memory that is not theirs any more. Close the ports and free what is held first.
func (p *Mempool) Free() error {
	if n := p.InUse(); n > 0 {
		return fmt.Errorf("mempool %q: %d mbufs are still in use: close the ports and free what is held first", p.name, n)
	}
	return call(fmt.Sprintf("mempool %q", p.name), "rte_mempool_free", func() C.int {
		C.rte_mempool_free(p.pool)
		return 0
	})
}
