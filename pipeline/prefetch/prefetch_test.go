// SPDX-License-Identifier: Apache-2.0

package prefetch

import (
	"testing"
	"unsafe"
)

// A prefetch must never fault, not even on an address that is mapped nowhere, and must read no
// further than n.
func TestNeverFaults(t *testing.T) {
	var line [128]byte
	addrs := []unsafe.Pointer{unsafe.Pointer(&line), nil, unsafe.Pointer(&line[127])}
	for n := 0; n <= len(addrs); n++ {
		Lines(&addrs[0], n)
		Pairs(&addrs[0], n)
	}
}
