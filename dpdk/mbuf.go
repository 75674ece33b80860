// SPDX-License-Identifier: Apache-2.0

package dpdk

// #cgo noescape weir_free
// #cgo nocallback weir_free
// #include "dpdk.h"
import "C"

import "unsafe"

// Mbuf is the address of an rte_mbuf; 0 is none. Its methods are loads and stores, no calls of C.
type Mbuf uintptr

// field returns the address of the field at an offset. The mbuf is C's memory: no Go pointer comes
// of the conversion.
func (m Mbuf) field(offset uintptr) unsafe.Pointer {
	return unsafe.Add(*(*unsafe.Pointer)(unsafe.Pointer(&m)), offset)
}

func (m Mbuf) dataOff() *uint16 { return (*uint16)(m.field(C.WEIR_MBUF_DATA_OFF)) }
func (m Mbuf) dataLen() *uint16 { return (*uint16)(m.field(C.WEIR_MBUF_DATA_LEN)) }
func (m Mbuf) pktLen() *uint32  { return (*uint32)(m.field(C.WEIR_MBUF_PKT_LEN)) }
func (m Mbuf) bufLen() int      { return int(*(*uint16)(m.field(C.WEIR_MBUF_BUF_LEN))) }

// Bytes returns the data of the first segment. It aliases the mbuf. Its capacity is the rest of the
// buffer, so that append(b[:0], ...) within it, followed by SetLen, writes a packet.
func (m Mbuf) Bytes() []byte {
	off := int(*m.dataOff())
	data := unsafe.Add(*(*unsafe.Pointer)(m.field(C.WEIR_MBUF_BUF_ADDR)), off)
	return unsafe.Slice((*byte)(data), m.bufLen()-off)[:*m.dataLen()]
}

// SetLen sets the length of the packet in an mbuf of one segment. n is at most cap(m.Bytes()).
func (m Mbuf) SetLen(n int) {
	*m.dataLen() = uint16(n)
	*m.pktLen() = uint32(n)
}

// SetBytes makes data what is sent of an mbuf of one segment: a part of its buffer.
func (m Mbuf) SetBytes(data []byte) {
	*m.dataOff() = uint16(uintptr(unsafe.Pointer(unsafe.SliceData(data))) - *(*uintptr)(m.field(C.WEIR_MBUF_BUF_ADDR)))
	m.SetLen(len(data))
}

// Headroom returns how many bytes are free before the data.
func (m Mbuf) Headroom() int { return int(*m.dataOff()) }

// Prepend moves the start of the data n bytes to the front, into the headroom; n < 0 cuts bytes off
// the front (DPDK's rte_pktmbuf_adj). It is for mbufs of one segment; n is at most Headroom, -n at
// most the length.
func (m Mbuf) Prepend(n int) {
	*m.dataOff() = uint16(int(*m.dataOff()) - n)
	m.SetLen(int(*m.dataLen()) + n)
}

// Free gives mbufs, with all their segments, back to their pools, in one C call. Entries that are 0
// are skipped.
func Free(mbufs []Mbuf) {
	if len(mbufs) == 0 {
		return
	}
	C.weir_free((*C.uintptr_t)(unsafe.Pointer(&mbufs[0])), C.uint(len(mbufs)))
}
