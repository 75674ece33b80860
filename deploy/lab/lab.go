// SPDX-License-Identifier: Apache-2.0

// Package lab is a laboratory of network namespaces, for the live tests and the playground. It
// needs root.
//
//	lab.go      namespaces, and running code in one
//	link.go     veth pairs and other devices, addresses, routes; checksums in software
//	process.go  programs in a namespace, which end with their starter; what a killed run left
//	contain.go  a test run as a whole, which ends with all that it started
//	serve.go    listeners and probes
//	capture.go  reading frames; what a packet socket or a UDP socket had no room for
//
// A namespace is a machine: a guest, a router, a host that runs weir. A test has as many of each as
// it likes.
package lab

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Namespace is a network namespace.
type Namespace struct {
	Name  string          // "": it has none, and ends with its descriptor and the processes in it
	NS    netns.NsHandle  // for devices whose other end lies here
	Links *netlink.Handle // links, addresses and routes inside
}

// New makes a namespace without a name, so that not even a killed run leaves one behind. Its
// interfaces are mute (they have no IPv6: what weir's own interfaces must be), or have IPv6 without
// duplicate address detection and router advertisements: addresses work at once and nobody invents
// others.
func New(mute bool) (*Namespace, error) { return create("", mute) }

// NewNamed makes a namespace that `ip netns exec` finds. It stays until RemoveNamed.
func NewNamed(name string, mute bool) (*Namespace, error) { return create(name, mute) }

func create(name string, mute bool) (*Namespace, error) {
	n := &Namespace{Name: name}
	err := OnOwnThread(func() (err error) {
		if name == "" {
			n.NS, err = netns.New()
		} else {
			n.NS, err = netns.NewNamed(name)
		}
		return err
	})
	if err != nil {
		return nil, n.fault("create", err)
	}
	if n.Links, err = netlink.NewHandleAt(n.NS); err != nil {
		n.NS.Close()
		return nil, n.fault("open netlink", err)
	}
	settings := [][2]string{{"default/disable_ipv6", "1"}, {"all/disable_ipv6", "1"}}
	if !mute {
		settings = [][2]string{
			{"default/disable_ipv6", "0"}, {"all/disable_ipv6", "0"}, // a host may have turned it off for new namespaces
			{"default/accept_dad", "0"}, {"default/accept_ra", "0"},
		}
	}
	for _, s := range settings {
		if err == nil {
			err = n.Set("net/ipv6/conf/"+s[0], s[1])
		}
	}
	if err == nil {
		err = n.Up("lo")
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Close gives up the namespace. One without a name ends when no process is in it.
func (n *Namespace) Close() {
	n.Links.Close()
	n.NS.Close()
}

// Do runs f on a thread inside the namespace and waits for it. Sockets and processes that f makes
// belong there for ever, and a look at /proc/sys is at the namespace's; goroutines that f starts
// run outside.
func (n *Namespace) Do(f func() error) error {
	return OnOwnThread(func() error {
		if err := netns.Set(n.NS); err != nil {
			return n.fault("enter", err)
		}
		return f()
	})
}

// Set writes a setting under /proc/sys, such as net/ipv4/ip_forward, of this namespace.
func (n *Namespace) Set(key, value string) error {
	err := n.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) })
	if err != nil {
		return n.fault("set "+key, err)
	}
	return nil
}

// OnOwnThread runs f on a thread that ends with it. A panic becomes an error, so that the caller
// still cleans up.
func OnOwnThread(f func() error) error {
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

func (n *Namespace) fault(what string, err error) error {
	if n.Name == "" {
		return fmt.Errorf("network namespace: %s: %w", what, err)
	}
	return fmt.Errorf("network namespace %s: %s: %w", n.Name, what, err)
}
