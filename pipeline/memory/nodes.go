// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Nodes returns for each core the NUMA node that its memory should lie on: its own, or the nearest
// that has memory. It is -1, any, for a core that is on none, as one that is offline, and for all
// where one node has memory or the kernel names none. sys is "/sys".
func Nodes(sys string, cores []int) []int {
	dir := filepath.Join(sys, "devices/system/node")
	withMemory, online := readList(dir+"/has_memory"), readList(dir+"/online")
	nodes := slices.Repeat([]int{-1}, len(cores))
	if len(withMemory) < 2 {
		return nodes
	}
	for _, n := range online {
		of := fmt.Sprintf("%s/node%d", dir, n)
		cpus := readList(of + "/cpulist")
		near := n
		if !slices.Contains(withMemory, n) {
			near = nearest(of+"/distance", online, withMemory)
		}
		for i, core := range cores {
			if slices.Contains(cpus, core) {
				nodes[i] = near
			}
		}
	}
	return nodes
}

// nearest returns the one of nodes that a file of distances, one for each node that is online, has
// the least for; -1 if it has none.
func nearest(file string, online, nodes []int) int {
	text, _ := os.ReadFile(file)
	best, least := -1, 0
	for i, f := range strings.Fields(string(text)) {
		d, err := strconv.Atoi(f)
		if err == nil && i < len(online) && slices.Contains(nodes, online[i]) && (best < 0 || d < least) {
			best, least = online[i], d
		}
	}
	return best
}

// readList reads a file of the kernel's with numbers as in "0-3,8". What is not there is an empty
// list.
func readList(file string) (list []int) {
	text, _ := os.ReadFile(file)
	for part := range strings.SplitSeq(strings.TrimSpace(string(text)), ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, err := strconv.Atoi(first)
		if err != nil {
			continue
		}
		to := from
		if isRange {
			if to, err = strconv.Atoi(last); err != nil {
				continue
			}
		}
		for n := from; n <= to; n++ {
			list = append(list, n)
		}
	}
	return list
}

// known returns the nodes that are not any, each once and in order.
func known(nodes []int) []int {
	k := slices.DeleteFunc(slices.Clone(nodes), func(n int) bool { return n < 0 })
	slices.Sort(k)
	return slices.Compact(k)
}

// On calls f on a thread whose new pages come from a NUMA node, or by turns from several, while
// these have any; the caller's thread stays as it is. Without nodes but -1, it just calls f. Where
// the kernel refuses, f is called all the same, and On says why.
func On(nodes []int, f func()) (refused error) {
	if nodes = known(nodes); len(nodes) == 0 {
		f()
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and its policy with it
		refused = prefer(nodes)
		f()
	}()
	<-done
	return refused
}

// maxNodes is how many nodes Linux can be built for.
const maxNodes = 1024

// prefer sets the calling thread's policy for new pages.
func prefer(nodes []int) error {
	mode := uintptr(unix.MPOL_PREFERRED)
	if len(nodes) > 1 {
		mode = unix.MPOL_INTERLEAVE
	}
	var mask [maxNodes / 64]uint64
	for _, n := range nodes {
		if n >= maxNodes {
			return fmt.Errorf("NUMA node %d; expected one below %d", n, maxNodes)
		}
		mask[n/64] |= 1 << (n % 64)
	}
	// The kernel takes one bit less than it is told.
	if _, _, e := unix.Syscall(unix.SYS_SET_MEMPOLICY, mode, uintptr(unsafe.Pointer(&mask)), maxNodes+1); e != 0 {
		return fmt.Errorf("set_mempolicy for NUMA nodes %v: %w; allow these nodes and the call to this process (cpuset, seccomp)", nodes, e)
	}
	return nil
}
