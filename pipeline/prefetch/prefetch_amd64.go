// SPDX-License-Identifier: Apache-2.0

package prefetch

import "unsafe"

// Lines prefetches the cache line at each of the n addresses that start at addrs.
//
//go:noescape
func Lines(addrs *unsafe.Pointer, n int)

// Pairs prefetches two neighboring cache lines at each of the n addresses that start at addrs.
//
//go:noescape
func Pairs(addrs *unsafe.Pointer, n int)
