// SPDX-License-Identifier: Apache-2.0

//go:build faultpoints

package fault

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// The environment variable WEIR_FAULT=NAME:N ends the process by SIGKILL when point NAME is reached for the Nth time.
var name, left = func() (string, int) {
	name, n, _ := strings.Cut(os.Getenv("WEIR_FAULT"), ":")
	left, _ := strconv.Atoi(n)
	return name, left
}()

// Point is a place to die at.
func Point(p string) {
	if p != name {
		return
	}
	if left--; left == 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal may take a moment
	}
}
