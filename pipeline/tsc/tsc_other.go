// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package tsc

// Read returns nanoseconds.
func Read() uint64 { return twin() }
