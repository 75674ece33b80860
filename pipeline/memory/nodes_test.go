// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sysfs makes a root folder with what is under devices/system/node in it.
func sysfs(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		name = filepath.Join(root, "devices/system/node", name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestNodes(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		cores []int
		want  []int
	}{
		{"no folder at all", nil, []int{1, 2}, []int{-1, -1}},
		{"one node", map[string]string{"online": "0", "has_memory": "0", "node0/cpulist": "0-7"}, []int{1, 7}, []int{-1, -1}},
		{"two", map[string]string{
			"online": "0-1", "has_memory": "0-1", "node0/cpulist": "0-3,8-11", "node1/cpulist": "4-7,12,14",
		}, []int{11, 4, 0, 14}, []int{0, 1, 0, 1}},
		{"a core that is offline", map[string]string{
			"online": "0-1", "has_memory": "0-1", "node0/cpulist": "0-3", "node1/cpulist": "4-6",
		}, []int{7, 6, 99}, []int{-1, 1, -1}},
		{"a node without memory: the nearest", map[string]string{
			"online": "0-2,4", "has_memory": "0,2,4", "node0/cpulist": "0-1", "node1/cpulist": "2-3", "node2/cpulist": "4-5", "node4/cpulist": "",
			"node1/distance": "30 10 25 20",
		}, []int{3, 0, 5}, []int{4, 0, 2}},
		{"a node without memory and without distances", map[string]string{
			"online": "0-2", "has_memory": "0,2", "node0/cpulist": "0", "node1/cpulist": "1", "node2/cpulist": "2",
		}, []int{0, 1, 2}, []int{0, -1, 2}},
		{"all memory on one of two", map[string]string{
			"online": "0-1", "has_memory": "1", "node0/cpulist": "0", "node1/cpulist": "1",
		}, []int{0, 1}, []int{-1, -1}},
	} {
		if got := Nodes(sysfs(t, c.files), c.cores); !slices.Equal(got, c.want) {
			t.Errorf("%s: cores %v have nodes %v, want %v", c.name, c.cores, got, c.want)
		}
	}
}

// getMempolicy returns the calling thread's policy and its nodes below 64; with an address, the
// node of the page there.
func getMempolicy(t *testing.T, addr unsafe.Pointer) (mode int, nodes uint64) {
	t.Helper()
	var m int32
	var mask [maxNodes / 64]uint64
	flags := 0
	if addr != nil {
		flags = unix.MPOL_F_NODE | unix.MPOL_F_ADDR
	}
	if _, _, e := unix.Syscall6(unix.SYS_GET_MEMPOLICY, uintptr(unsafe.Pointer(&m)), uintptr(unsafe.Pointer(&mask)), maxNodes,
		uintptr(addr), uintptr(flags), 0); e != 0 {
		t.Fatalf("get_mempolicy: %v", e)
	}
	return int(m), mask[0]
}

func TestOn(t *testing.T) {
	node := readList("/sys/devices/system/node/has_memory")[0]
	called := 0
	if err := On([]int{node, -1}, func() {
		called++
		if mode, nodes := getMempolicy(t, nil); mode != unix.MPOL_PREFERRED || nodes != 1<<node {
			t.Errorf("the thread has policy %d for nodes %b, want %d for node %d", mode, nodes, unix.MPOL_PREFERRED, node)
		}
	}); err != nil {
		t.Error(err)
	}
	err := On([]int{maxNodes - 1}, func() { called++ })
	if err == nil || !strings.Contains(err.Error(), "1023") || !strings.Contains(err.Error(), "cpuset") {
		t.Errorf("a node that is not there: %v", err)
	}
	if err := On([]int{maxNodes}, func() { called++ }); err == nil {
		t.Error("a node that can not be there is accepted")
	}
	if err := On([]int{-1}, func() {
		called++
		if mode, _ := getMempolicy(t, nil); mode != unix.MPOL_DEFAULT {
			t.Errorf("any node: policy %d, want the default one", mode)
		}
	}); err != nil {
		t.Error(err)
	}
	if called != 4 {
		t.Errorf("called %d times, want 4", called)
	}
}

// Every section lies on the node that it was placed on, on as many nodes as this machine has, in
// plain pages and huge ones.
func TestPlacedSegment(t *testing.T) {
	const n = 3 << 20
	nodes := readList("/sys/devices/system/node/has_memory")
	for _, huge := range []bool{false, true} {
		var l Layout
		l.Place(nodes...)
		shared := Add[byte](&l, n)
		var parts []uint64
		for _, node := range nodes {
			l.Place(node)
			parts = append(parts, Add[byte](&l, n))
			if last := parts[len(parts)-1]; len(nodes) > 1 && last%HugePage != 0 {
				t.Errorf("the section on node %d begins at %#x, inside of a huge page", node, last)
			}
			Add[byte](&l, n)
		}
		s, err := l.New("test", huge)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.PlacementRefused(); err != nil {
			t.Error(err)
		}
		for i, node := range nodes {
			for at := uint64(0); at < 2*n; at += uint64(os.Getpagesize()) {
				if got, _ := getMempolicy(t, unsafe.Pointer(At[byte](s, parts[i]+at))); got != node {
					t.Fatalf("%#x bytes into the section on node %d a page is on node %d (huge pages: %v)", at, node, got, s.Huge())
				}
			}
		}
		seen := map[int]int{}
		for at := uint64(0); at < n; at += uint64(os.Getpagesize()) {
			got, _ := getMempolicy(t, unsafe.Pointer(At[byte](s, shared+at)))
			seen[got]++
		}
		if len(seen) != len(nodes) {
			t.Errorf("what lies on all nodes by turns is on nodes %v (huge pages: %v)", seen, s.Huge())
		}
		t.Logf("%d nodes, cores 0 to 3 on %v, huge pages %v: shared pages by node %v", len(nodes), Nodes("/sys", []int{0, 1, 2, 3}), s.Huge(), seen)
	}
}

// Nodes that are not there leave a segment that works, and a reason.
func TestPlacementRefused(t *testing.T) {
	var l Layout
	Add[record](&l, 1)
	var parts []uint64
	for _, node := range []int{maxNodes - 2, maxNodes - 1, -1} {
		l.Place(node)
		parts = append(parts, Add[record](&l, 1))
	}
	s, err := l.New("test", false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.PlacementRefused(); err == nil || !strings.Contains(err.Error(), fmt.Sprint(maxNodes-2)) {
		t.Errorf("the first refusal is %v, want one of node %d", err, maxNodes-2)
	}
	for _, off := range parts {
		if off%HugePage != 0 {
			t.Errorf("a part begins at %#x, inside of a huge page", off)
		}
		At[record](s, off).N = off
	}
	if l.Size() > 4*HugePage {
		t.Errorf("%d bytes for four parts", l.Size())
	}
}
