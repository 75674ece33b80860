// SPDX-License-Identifier: Apache-2.0

package link

import (
	"os"

	"golang.org/x/sys/unix"
)

// Harden keeps other processes of the same user out of this one's memory, which has every tenant's
// packets and the sessions: nobody but root may trace it or read its memory, it leaves no core, and
// one that root has made nevertheless has no memory in it.
func Harden() error {
	const headersOnly = "0x10" // core(5)
	// A kernel without cores has no such file.
	if err := os.WriteFile("/proc/self/coredump_filter", []byte(headersOnly), 0); err != nil && !os.IsNotExist(err) && !os.IsPermission(err) {
		return err
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
