// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// checkPeer refuses a listener that is not who made the socket. Owner and peer are compared as this
// process sees them: in a user namespace both may be the one that stands for all others.
func checkPeer(fd int, path string) error {
	peer, err := Peer(fd)
	if err != nil {
		return err
	}
	var info unix.Stat_t
	if err := unix.Stat(path, &info); err != nil {
		return err
	}
	if peer.Uid != info.Uid && peer.Uid != 0 && peer.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("user %d listens there, but the socket is of user %d: expected one of the two, or root", peer.Uid, info.Uid)
	}
	return nil
}
