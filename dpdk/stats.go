// SPDX-License-Identifier: Apache-2.0

package dpdk

// #cgo noescape weir_stats
// #cgo nocallback weir_stats
// #cgo noescape weir_xstats
// #cgo nocallback weir_xstats
// #cgo noescape weir_link
// #cgo nocallback weir_link
// #include "dpdk.h"
import "C"

import (
	"syscall"
	"unsafe"
)

// Link is a port's link state. Software devices say up whatever their interface does.
type Link struct {
	Up    bool
	Speed uint32 // Mbit/s; 0: unknown
}

// Link asks the driver, without waiting. No answer is down.
func (p *Port) Link() Link {
	var speed C.uint32_t
	up := C.weir_link(p.id, &speed)
	return Link{Up: up == 1, Speed: uint32(speed)}
}

// Stats are a port's counters since it was opened. What a driver does not count is 0.
type Stats struct { // struct weir_stats in C
	RxPackets, TxPackets uint64
	RxBytes, TxBytes     uint64 // without CRC
	RxMissed             uint64 // lost because the queues were full
	RxErrors, TxErrors   uint64
	RxNoMbuf             uint64 // lost because the mempool was empty
}

var _ = [1]struct{}{}[unsafe.Sizeof(Stats{})-C.sizeof_struct_weir_stats]

// Stats reads the counters.
func (p *Port) Stats() (Stats, error) {
	var s Stats
	if rc := C.weir_stats(p.id, (*C.struct_weir_stats)(unsafe.Pointer(&s))); rc < 0 {
		return Stats{}, &Error{Object: p.object, Call: "rte_eth_stats_get", Errno: syscall.Errno(-rc)}
	}
	return s, nil
}

// XStat is one of the counters that a driver has beyond Stats, by its own name.
type XStat struct {
	Name  string
	Value uint64
}

// XStats appends the port's extended statistics to list. One goroutine at a time may call it.
func (p *Port) XStats(list []XStat) ([]XStat, error) {
	for {
		var at *C.struct_weir_xstat
		if len(p.xstats) > 0 {
			at = &p.xstats[0]
		}
		n := C.weir_xstats(p.id, at, C.uint(len(p.xstats)))
		if n < 0 {
			return list, &Error{Object: p.object, Call: "rte_eth_xstats_get", Errno: syscall.Errno(-n)}
		}
		if int(n) <= len(p.xstats) {
			for i, x := range p.xstats[:n] {
				list = append(list, XStat{Name: p.xstatNames[i], Value: uint64(x.value)})
			}
			return list, nil
		}
		if err := p.nameXStats(int(n)); err != nil {
			return list, err
		}
	}
}

// nameXStats makes room for n extended statistics and learns their names, which stay while the port
// is open.
func (p *Port) nameXStats(n int) error {
	p.xstats = make([]C.struct_weir_xstat, n)
	p.xstatNames = make([]string, n)
	for i := range n {
		var name [64]C.char
		if rc := C.weir_xstat_name(p.id, C.uint64_t(i), &name[0], C.size_t(len(name))); rc < 0 {
			p.xstats = nil
			return &Error{Object: p.object, Call: "rte_eth_xstats_get_names_by_id", Errno: syscall.Errno(-rc)}
		}
		p.xstatNames[i] = C.GoString(&name[0])
	}
	return nil
}
