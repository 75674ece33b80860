// SPDX-License-Identifier: Apache-2.0

//go:build faultpoints

package fault

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The environment variable WEIR_FAULT=NAME:N ends the process by SIGKILL when point NAME is reached
// for the Nth time.
var name, left = func() (string, int) {
	name, n, _ := strings.Cut(os.Getenv("WEIR_FAULT"), ":")
	left, _ := strconv.Atoi(n)
	return name, left
}()

// WEIR_FAULT_ONCE names a file that is made first; if it is there already, the process lives on:
// the one that was started in place of the dead one.
var once = os.Getenv("WEIR_FAULT_ONCE")

// WEIR_LATCHES names a directory. A point waits as long as a file NAME.wait is in it, and makes
// NAME.reached when it begins to wait. An operation fails as long as NAME.fail is there.
var latches = os.Getenv("WEIR_LATCHES")

// Point is a place to die at, or to wait at.
func Point(p string) {
	if latches != "" {
		wait(filepath.Join(latches, p))
	}
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

func wait(latch string) {
	if !exists(latch + ".wait") {
		return
	}
	os.WriteFile(latch+".reached", nil, 0o600)
	for exists(latch + ".wait") {
		time.Sleep(time.Millisecond)
	}
}

// Error is what operation o fails with: nil but when a test wants it to fail.
func Error(o string) error {
	if latches != "" && exists(filepath.Join(latches, o+".fail")) {
		return errors.New("a test makes it fail")
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
