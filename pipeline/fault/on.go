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

// WEIR_FAULT_ONCE names a file that is made first; if it is there already, the process lives on: the one that was
// started in place of the dead one.
var once = os.Getenv("WEIR_FAULT_ONCE")

// Point is a place to die at.
func Point(p string) {
	if p != name {
		return
	}
	if left--; left != 0 {
		return
	}
	if once != "" {
		fd, err := syscall.Open(once, syscall.O_CREAT|syscall.O_EXCL|syscall.O_CLOEXEC, 0o600)
		if err != nil {
			return
		}
		syscall.Close(fd)
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal may take a moment
}
