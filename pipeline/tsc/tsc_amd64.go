// SPDX-License-Identifier: Apache-2.0

package tsc

// Read returns the counter once all earlier instructions have ended, so that none of what is
// measured falls outside.
//
//go:noescape
func Read() uint64
