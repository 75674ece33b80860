// SPDX-License-Identifier: Apache-2.0

// Package dataplane is the process that moves packets: a loop for each worker, where ports and
// pipeline meet, and one thread that obeys control.
package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"os/user"
	"runtime/debug"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/appliance/link"
)

// Options are what the command line says.
type Options struct {
	Socket  string // where to listen
	Control string // a user, by name or number, who may command beside root and this process's own; empty: none
	Bounds
}

// commanders returns who may command.
func (o *Options) commanders() ([]uint32, error) {
	list := []uint32{0, uint32(os.Geteuid())}
	if o.Control == "" {
		return list, nil
	}
	number := o.Control
	if _, err := strconv.ParseUint(number, 10, 32); err != nil {
		u, err := user.Lookup(o.Control)
		if err != nil {
			return nil, fmt.Errorf("--control: %w; expected the user that weir run runs as", err)
		}
		number = u.Uid
	}
	uid, err := strconv.ParseUint(number, 10, 32)
	return append(list, uint32(uid)), err
}

// Run is the data plane's life. The process has nothing to collect: it allocates at start, and
// nothing afterwards. It obeys one control process at a time, and forwards whether there is one or
// not.
func Run(o Options) error {
	if err := o.Bounds.check(); err != nil {
		return err
	}
	commanders, err := o.commanders()
	if err != nil {
		return err
	}
	if err := link.Harden(); err != nil {
		return fmt.Errorf("keep others out of this process's memory: %w", err)
	}
	debug.SetTraceback("all") // it may be another goroutine that is stuck
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(math.MaxInt64) // an inherited GOMEMLIMIT would collect all the same
	signal.Ignore(unix.SIGINT, unix.SIGPIPE)
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, unix.SIGTERM)

	l, err := link.Listen(o.Socket)
	if err != nil {
		return err
	}
	defer os.Remove(o.Socket)
	defer unix.Close(l)
	d := &plane{log: slog.Default(), bounds: o.Bounds, commanders: commanders, control: link.Conn{FD: link.NoConn}, refused: link.Conn{FD: link.NoConn}}
	notifier := link.NewNotifier()
	go d.watchdog(notifier)
	notifier.Say(link.Ready)
	return errors.Join(d.serve(l, terminated), d.close())
}

// serve obeys control until it says stop, or a signal does. Once started nothing is allocated.
func (d *plane) serve(l int, terminated <-chan os.Signal) error {
	var p [2]unix.PollFd
	var next int64
	for {
		if now := link.Monotonic(); d.orders != nil && now >= next {
			d.measure()
			next = now + 1e9
		}
		p[0] = unix.PollFd{Fd: int32(l), Events: unix.POLLIN}
		p[1] = unix.PollFd{Fd: int32(d.control.FD), Events: unix.POLLIN} // -1 is passed over
		if _, err := unix.Poll(p[:], 200); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		select {
		case <-terminated:
			d.log.Info("terminated")
			return nil
		default:
		}
		if p[1].Revents != 0 {
			if stop, err := d.obey(); stop || err != nil {
				return err
			}
		}
		if p[0].Revents != 0 {
			d.accept(l)
		}
	}
}

// accept takes on a control process, or tells it that there is one.
func (d *plane) accept(l int) {
	// Not unix.Accept4, which allocates the peer's address.
	fd, _, e := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(l), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
	switch {
	case e != 0:
	case !d.mayCommand(int(fd)):
		unix.Close(int(fd))
	case d.control.FD == link.NoConn:
		d.control.FD = int(fd)
	default:
		if d.refused.FD != link.NoConn {
			d.refused.Close()
		}
		// Closed at the next time, not now: a question that nobody reads would turn the answer into
		// a reset.
		d.refused.FD = int(fd)
		d.refused.Send(link.Failed, 0, alreadyCommanded)
	}
}

// mayCommand asks the kernel who has connected. Not unix.GetsockoptUcred, which allocates.
func (d *plane) mayCommand(fd int) bool {
	size := uint32(unix.SizeofUcred)
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERCRED, uintptr(unsafe.Pointer(&d.peer)), uintptr(unsafe.Pointer(&size)), 0)
	return e == 0 && slices.Contains(d.commanders, d.peer.Uid)
}

var alreadyCommanded = []byte("another weir run controls this data plane; stop it first, or choose another socket with --socket")

// obey handles one message of control. A stop, or a start that failed, ends the process; anything
// that is wrong with the connection only ends the connection.
func (d *plane) obey() (stop bool, err error) {
	c := &d.control
	kind, number, payload, err := c.Receive()
	if err != nil {
		if d.orders != nil {
			d.log.Warn("control is gone; forwarding goes on", "reason", err)
		}
		c.Close()
		return false, nil
	}
	switch {
	case kind == link.Hello && d.orders == nil:
		err = c.Send(link.Idle, 0, nil)
	case kind == link.Hello:
		err = c.Send(link.Running, d.current, d.orders, d.state.Segment.FD(), d.gens.At(d.current).FD(), d.state.GrowingFD())
	case kind == link.Start && d.orders == nil:
		d.starting.Store(link.Monotonic())
		failed := d.start(payload, c.Take(0), c.Take(1), c.Take(2))
		d.starting.Store(0)
		if failed != nil {
			c.Send(link.Failed, 0, []byte(failed.Error())) // who says it
			return true, nil
		}
		d.measure()
		err = c.Send(link.OK, 0, nil)
	case kind == link.Publish && d.orders != nil:
		if failed := d.publish(number, c.Take(0)); failed != nil {
			err = c.Send(link.Failed, 0, []byte(failed.Error()))
		} else {
			err = c.Send(link.OK, number, nil)
		}
	case kind == link.Stop:
		c.Send(link.OK, 0, nil)
		return true, nil
	default:
		err = c.Send(link.Failed, 0, fmt.Appendf(nil, "message %d is not expected now: control has another version; expected the same version of both", kind))
	}
	if err != nil {
		d.log.Warn("cannot send control its answer", "error", err)
		c.Close()
	}
	return false, nil
}
