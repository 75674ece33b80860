// SPDX-License-Identifier: Apache-2.0

//go:build !faultpoints

// Package fault names points between two stores where a test kills the process or makes it wait,
// and operations that a test makes fail. Built without the tag faultpoints, all of that is nothing.
package fault

// Point is a place to die at, or to wait at.
func Point(string) {}

// Error is what an operation fails with: nil but when a test wants it to fail.
func Error(string) error { return nil }
