// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CheckDirectory refuses a directory in which others than its owner could put something in the
// place of a socket or a lock: their write permission on it, or on one that leads to it.
func CheckDirectory(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	// The path as the kernel goes: a symbolic link is as safe as where it lies and where it leads.
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for _, path := range []string{dir, real} {
		for at, last := path, true; ; at, last = filepath.Dir(at), false {
			info, err := os.Stat(at)
			if err != nil {
				return err
			}
			mode := info.Mode()
			switch {
			case !mode.IsDir():
				return fmt.Errorf("%s is not a directory", at)
			case last && mode.Perm()&0o022 != 0, mode.Perm()&0o002 != 0 && mode&os.ModeSticky == 0:
				return fmt.Errorf("others may write to the directory %s (mode %04o); expected that only its owner may", at, mode.Perm())
			}
			if at == "/" {
				break
			}
		}
	}
	return nil
}

// Peer is who is at the other end of a Unix socket, as the kernel says.
func Peer(fd int) (*unix.Ucred, error) {
	return unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
}
