// SPDX-License-Identifier: Apache-2.0

package link

import (
	"os"

	"golang.org/x/sys/unix"
)

// Notifier speaks to a service manager as sd_notify(3) does.
// The zero Notifier speaks to nobody.
type Notifier struct {
	fd   int
	open bool
}

// What a Notifier says. The service manager ends a service whose watchdog does not bark for
// WatchdogSec.
var (
	Ready    = []byte("READY=1")
	Stopping = []byte("STOPPING=1")
	Watchdog = []byte("WATCHDOG=1")
)

// NewNotifier returns who speaks to the service manager that started this process, if one did, and
// takes it out of the environment: children are not to speak for this one.
func NewNotifier() Notifier {
	path := os.Getenv("NOTIFY_SOCKET")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name)
	}
	if path == "" {
		return Notifier{}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return Notifier{}
	}
	if unix.Connect(fd, &unix.SockaddrUnix{Name: path}) != nil {
		unix.Close(fd)
		return Notifier{}
	}
	return Notifier{fd, true}
}

// Say tells the service manager something, or nobody. It neither allocates nor waits.
func (n Notifier) Say(what []byte) {
	if n.open {
		_, _ = unix.Write(n.fd, what) // a manager that does not listen has its reasons
	}
}
