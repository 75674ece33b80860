// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrInUse says that somebody listens at a socket.
var ErrInUse = errors.New("another process listens there")

// Bind has bind make the file of a Unix socket, to which the group may connect, in a directory that
// is made if need be. A socket file that nobody listens at is left over from a crash, and replaced;
// any other file stays, and is an error.
func Bind(path string, listening func() bool, bind func() error) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := CheckDirectory(dir); err != nil {
		return err
	}
	if listening() {
		return ErrInUse
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is not a socket", path)
	}
	os.Remove(path)
	old := unix.Umask(0o117)
	defer unix.Umask(old)
	return bind()
}

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
