// SPDX-License-Identifier: Apache-2.0

//go:build race

package memory

import (
	"sync/atomic"
	"unsafe"
)

// private says that nobody maps new segments a second time.
var private atomic.Bool

// Private makes segments that New makes from now on lie on the Go heap, which is all that the race
// detector sees, or, with false, where two processes can share them.
func Private(on bool) { private.Store(on) }

// onHeap returns memory of the Go heap for a segment, or nil.
func onHeap(size uint64) unsafe.Pointer {
	if !private.Load() {
		return nil
	}
	return unsafe.Pointer(&make([]uint64, size/8)[0])
}

// copyWords is not instrumented: its reads are those of memory that the owner writes without an
// order, and wants to go on writing with plain stores.
//
//go:norace
func copyWords(to, from unsafe.Pointer, n uintptr) {
	for i := uintptr(0); i < n; i++ {
		*(*uint64)(unsafe.Add(to, 8*i)) = *(*uint64)(unsafe.Add(from, 8*i))
	}
}
