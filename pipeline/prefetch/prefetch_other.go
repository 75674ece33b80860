// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package prefetch

import "unsafe"

// Lines does nothing here.
func Lines(addrs *unsafe.Pointer, n int) {}

// Pairs does nothing here.
func Pairs(addrs *unsafe.Pointer, n int) {}
