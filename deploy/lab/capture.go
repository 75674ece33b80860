// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Capture hands every frame that arrives at an interface to see, until that returns false. stop
// ends it and returns how many there were. The frame is see's until it returns.
func (n *Namespace) Capture(link string, see func(frame []byte, err error) bool) (stop func() int, err error) {
	const every = uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // in network order
	l, err := n.Links.LinkByName(link)
	if err != nil {
		return nil, n.fault("capture at "+link, err)
	}
	fd := -1
	err = n.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(every)); err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		timeout := unix.Timeval{Usec: 100_000} // after which the reader looks whether it is stopped
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
			return fmt.Errorf("packet socket: timeout: %w", err)
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: l.Attrs().Index})
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, n.fault("capture at "+link, err)
	}
	over, done := make(chan struct{}), make(chan int, 1)
	go func() {
		defer unix.Close(fd)
		frames := 0
		defer func() { done <- frames }()
		buffer := make([]byte, 1<<16)
		for {
			length, from, err := unix.Recvfrom(fd, buffer, 0)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				select {
				case <-over:
					return
				default:
					continue
				}
			case err != nil:
				see(nil, fmt.Errorf("packet socket of %s: %w", link, err))
				return
			}
			if sll, ok := from.(*unix.SockaddrLinklayer); !ok || sll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			frames++
			if !see(buffer[:length], nil) {
				return
			}
		}
	}()
	return func() int {
		close(over)
		return <-done
	}, nil
}

// RingDrops returns how many frames the packet sockets of a process (net_af_packet's) had no room
// for since the last call: the kernel sets the count back when it is read. A process that has ended
// has none.
func RingDrops(pid int) (drops uint64, err error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("process %d: pidfd_open: %w", pid, err)
	}
	defer unix.Close(process)
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, nil // it has just ended
	}
	for _, e := range entries {
		target, _ := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "fd", e.Name()))
		number, err := strconv.Atoi(e.Name())
		if err != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		fd, err := unix.PidfdGetfd(process, number, 0)
		if err == unix.EBADF || err == unix.ESRCH {
			continue // closed meanwhile
		}
		if err != nil {
			return drops, fmt.Errorf("process %d: pidfd_getfd: %w", pid, err)
		}
		if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_PACKET {
			// The third version's answer begins like the others'.
			if s, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
				drops += uint64(s.Drops)
			}
		}
		unix.Close(fd)
	}
	return drops, nil
}

// UDPDrops returns how many datagrams the sockets of the namespace had no room for, since it was
// made.
func (n *Namespace) UDPDrops() (drops uint64, err error) {
	err = n.Do(func() error {
		// Of this thread: the process' own namespace is another.
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/net/snmp", unix.Gettid()))
		if err != nil {
			return err
		}
		b6, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/net/snmp6", unix.Gettid()))
		if err != nil {
			return err
		}
		drops = udpDrops(string(b), string(b6))
		return nil
	})
	if err != nil {
		return 0, n.fault("UDP counters", err)
	}
	return drops, nil
}

// udpDrops reads the kernel's two formats: of IPv4 a line of names and one of values, of IPv6 a
// line for each value.
func udpDrops(v4, v6 string) (drops uint64) {
	var names []string
	for line := range strings.Lines(v4) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Udp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "RcvbufErrors" && i < len(fields) {
				v, _ := strconv.ParseUint(fields[i], 10, 64)
				drops += v
			}
		}
	}
	for line := range strings.Lines(v6) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "Udp6RcvbufErrors" {
			v, _ := strconv.ParseUint(fields[1], 10, 64)
			drops += v
		}
	}
	return drops
}
