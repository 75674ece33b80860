// SPDX-License-Identifier: Apache-2.0

//go:build !faultpoints

// Package fault names points between two stores where a test kills the process. Built without the tag
// faultpoints, a point is nothing.
package fault

// Point is a place to die at.
func Point(string) {}
