// SPDX-License-Identifier: Apache-2.0

package dpdk

// #include "dpdk.h"
// #include <rte_errno.h>
import "C"

import (
	"fmt"
	"strings"
	"syscall"
	"unsafe"
)

// Error is DPDK's refusal of one call. It unwraps to its syscall.Errno, which is often misleading:
// DPDK says "Operation not permitted" of an interface that does not exist. The reason is in Log.
type Error struct {
	Object string        // what the call was about: `port "inside": device "net_null0"`
	Call   string        // DPDK's function: "rte_dev_probe"
	Errno  syscall.Errno // 0 where DPDK gave none
	Log    []string      // what DPDK logged during the call
	Hint   string        // what to do; empty when we do not know
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s: %s", e.Object, e.Call, e.reason())
	if len(e.Log) > 0 {
		fmt.Fprintf(&b, " (DPDK says: %s)", strings.Join(e.Log, "; "))
	}
	if e.Hint != "" {
		b.WriteString(": " + e.Hint)
	}
	return b.String()
}

// reason is the text of the error number, of DPDK's own numbers too.
func (e *Error) reason() string {
	if e.Errno == 0 {
		return "failed"
	}
	return C.GoString(C.rte_strerror(C.int(e.Errno)))
}

func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// hints say what to do about something that DPDK says, in its log or by error number. The first
// that occurs wins.
var hints = []struct{ said, do string }{
	{"ioctl failed (SIOCGIFINDEX)", "no such interface in this network namespace: create it, or correct iface="},
	{"No such device exists", "no such interface in this network namespace: create it, or correct iface="},
	{"Could not open AF_PACKET socket", "give the process CAP_NET_RAW"},
	{"call to mmap failed on AF_PACKET", "raise the limit of locked memory (ulimit -l, LimitMEMLOCK=), or lower framecnt="},
	{"permission to perform this capture", "give the process CAP_NET_RAW"},
	{"Unable to set TUNSETIFF", "give the process CAP_NET_ADMIN, and the tap a name that is free"},
	{"No such file or directory", "create the file, or correct its name"},
	{"failed to parse device", "no driver has this name: write a PCI address, 0000:3b:00.1, or driver, number and arguments, net_af_packet0,iface=x"},
	{"Cannot find device", "the host has no such PCI device, or it was not named when EAL started"},
	{"Address already in use", "another process holds the socket, or left it: stop that, or remove the file"},
	{"Device or resource busy", "another process holds the device: stop that"},
	{"group is not viable", "bind all devices of its IOMMU group to vfio-pci"},
	{"Cannot init memory", "ask for less memory, or reserve more huge pages (vm.nr_hugepages)"},
	{"Not enough memory", "ask for less memory, or reserve more huge pages (vm.nr_hugepages)"},
	{"Invalid 'command line' arguments", "correct the EAL arguments"},
	{"File exists", "the name is taken: choose another"},
	{"Cannot allocate memory", "EAL's memory is used up: start with more, or use fewer or smaller mbufs"},
	{"No buffer space available", "EAL's memory is used up: start with more, or use fewer or smaller mbufs"},
	{"Driver cannot attach the device", "check the device's arguments, and whether this process may use it"},
}

// refusal makes an Error of the negative result of a call, on the thread that made it.
func refusal(object, call string, rc C.int) *Error {
	e := &Error{Object: object, Call: call, Errno: syscall.Errno(-rc), Log: captured()}
	said := strings.Join(append(e.Log, e.reason()), "\n")
	for _, h := range hints {
		if strings.Contains(said, h.said) {
			e.Hint = h.do
			break
		}
	}
	return e
}

// captured returns what this thread has logged since weir_log_begin.
func captured() []string {
	var n C.size_t
	text := C.weir_log_captured(&n)
	return logLines(string(unsafe.Slice((*byte)(unsafe.Pointer(text)), n)))
}
