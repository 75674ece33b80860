// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where named network namespaces live, as `ip netns` has it.
const netnsDir = "/run/netns"

// namespace is one named network namespace of ours.
type namespace struct {
	name  string
	ns    netns.NsHandle
	links *netlink.Handle // links, addresses and routes inside
}

// newNamespace makes a namespace whose interfaces start without IPv6, or, with ipv6, without duplicate
// address detection and router advertisements: addresses work at once and nobody invents others.
func newNamespace(name string, ipv6 bool) (*namespace, error) {
	n := &namespace{name: name}
	err := onOwnThread(func() (err error) {
		n.ns, err = netns.NewNamed(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("namespace %s: create: %w", name, err)
	}
	if n.links, err = netlink.NewHandleAt(n.ns); err != nil {
		return nil, fmt.Errorf("namespace %s: open netlink: %w", name, err)
	}
	settings := map[string]string{"default/disable_ipv6": "1", "all/disable_ipv6": "1"}
	if ipv6 {
		settings = map[string]string{
			"default/disable_ipv6": "0", "all/disable_ipv6": "0", // a host may have turned it off for new namespaces
			"default/accept_dad": "0", "default/accept_ra": "0",
		}
	}
	err = n.do(func() error {
		for key, value := range settings {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+key, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return n, n.up("lo")
}

// do runs f on a thread inside the namespace and waits for it. A socket, a process and a look at /proc/sys belong
// to the namespace of the thread that made them, so f does these things itself, not in goroutines of its own.
func (n *namespace) do(f func() error) error {
	err := onOwnThread(func() error {
		if err := netns.Set(n.ns); err != nil {
			return fmt.Errorf("enter: %w", err)
		}
		return f()
	})
	if err != nil {
		return fmt.Errorf("namespace %s: %w", n.name, err)
	}
	return nil
}

// onOwnThread runs f on a thread that ends with it. A panic becomes an error, so that the caller still cleans up.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and no unlock: the runtime must not use a thread of another namespace again
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		done <- f()
	}()
	return <-done
}

func (n *namespace) up(link string) error {
	l, err := n.links.LinkByName(link)
	if err == nil {
		err = n.links.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("namespace %s: set %s up: %w", n.name, link, err)
	}
	return nil
}

// removeNamespaces ends every process in the namespaces whose names begin with prefix and removes them; their
// interfaces go with them. It is the end of a run and, for what a crashed run left behind, the beginning of one.
func removeNamespaces(prefix string) error {
	paths, err := filepath.Glob(filepath.Join(netnsDir, prefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range paths {
		errs = append(errs, endProcesses(path))
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL { // EINVAL: made, but not mounted yet
			errs = append(errs, fmt.Errorf("namespace %s: unmount: %w", path, err))
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("namespace %s: remove: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// endProcesses asks the processes inside the namespace to end, and after five seconds makes them.
func endProcesses(path string) error {
	for attempt := range 100 {
		pids, err := processesIn(path)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			switch attempt {
			case 0:
				err = unix.Kill(pid, unix.SIGTERM)
			case 50:
				err = unix.Kill(pid, unix.SIGKILL)
			}
			if err != nil && err != unix.ESRCH {
				return fmt.Errorf("namespace %s: end process %d: %w", path, pid, err)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("namespace %s: its processes do not end", path)
}

// processesIn lists the processes, other than this one, whose network namespace is the one at path.
func processesIn(path string) ([]int, error) {
	var want, have unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return nil, fmt.Errorf("namespace %s: %w", path, err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, link := range links {
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		if unix.Stat(link, &have) == nil && have.Ino == want.Ino && have.Dev == want.Dev {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
