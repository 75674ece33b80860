// SPDX-License-Identifier: Apache-2.0

package dpdk

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ownNetwork gives the process a network namespace, where it is root.
func ownNetwork(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
}

// link returns an interface of this network namespace as it is now.
func link(t *testing.T, name string) *net.Interface {
	t.Helper()
	i, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// Two interfaces that are each other's peers, both ours.
func TestAFPacket(t *testing.T) {
	alone(t, ownNetwork, func(t *testing.T) {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "left", MTU: 1500}, PeerName: "right"}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"left", "right"} {
			mute := fmt.Sprintf("/proc/sys/net/ipv6/conf/%s/disable_ipv6", name)
			if err := os.WriteFile(mute, []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
			l, err := netlink.LinkByName(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkSetUp(l); err != nil {
				t.Fatal(err)
			}
		}
		lock := unix.Rlimit{Cur: 8 << 20, Max: 8 << 20} // the usual limit of locked memory
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &lock); err != nil {
			t.Fatal(err)
		}
		if err := Init(plain()); err != nil {
			t.Fatal(err)
		}
		pool, err := NewMempool("frames", 2047, DataRoom(9000), 0)
		if err != nil {
			t.Fatal(err)
		}
		cfg := func(name, args string) PortConfig {
			return PortConfig{Name: name, Device: "net_af_packet_" + name + ",iface=" + name + args,
				Mempool: func(int) (*Mempool, error) { return pool, nil }}
		}

		// What cannot be opened.
		jumbo := cfg("left", ",framesz=16384,blocksz=32768,framecnt=64")
		jumbo.MTU = 9000
		twoQueues := cfg("left", "")
		twoQueues.TxQueues = 2
		locked := cfg("left", ",framecnt=65536")
		for want, c := range map[string]PortConfig{
			"raise the limit of locked memory":                                        locked,
			"interface left has MTU 1500, wanted 9000: ip link set dev left mtu 9000": jumbo,
			"net_af_packet: qpairs=N":                                                 twoQueues,
			"no such interface in this network namespace":                             cfg("nosuch", ""),
		} {
			if _, err := OpenPort(c); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}

		leftCfg := cfg("left", "")
		leftCfg.MAC, leftCfg.RequireMAC, leftCfg.MTU = [6]byte{2, 0, 0, 0, 0, 1}, true, 1400
		left, err := OpenPort(leftCfg)
		if err != nil {
			t.Fatal(err)
		}
		again := cfg("left", "")
		again.Device = "net_af_packet_other,iface=left"
		if _, err := OpenPort(again); err == nil || !strings.Contains(err.Error(), `is open already, by port "left"`) {
			t.Errorf("one interface, two devices: %v", err)
		}
		rightCfg := cfg("right", "")
		rightCfg.Promiscuous = true
		right, err := OpenPort(rightCfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []*Port{left, right} {
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
		}
		if i := link(t, "left"); i.MTU != 1400 || i.HardwareAddr.String() != "02:00:00:00:00:01" || left.IfIndex() != i.Index {
			t.Errorf("left is %+v, index %d", i, left.IfIndex())
		}
		if i := link(t, "right"); [6]byte(i.HardwareAddr) != right.MAC() || !promiscuous(t, "right") {
			t.Errorf("right is %+v, MAC %x, promiscuous %t", i, right.MAC(), promiscuous(t, "right"))
		}

		// A frame of an experimental type, which nobody else sends, to nobody's address.
		m := make([]Mbuf, 1)
		if err := pool.Alloc(m); err != nil {
			t.Fatal(err)
		}
		frame := append(m[0].Bytes(), "\x02\x00\x00\x00\x00\x77\x02\x00\x00\x00\x00\x01\x88\xb5hello, right side"...)
		m[0].SetLen(len(frame))
		want := string(frame)
		if n := left.Transmit(0, m); n != 1 {
			t.Fatalf("took %d", n)
		}
		found := false
		var b RxBurst
		for deadline := time.Now().Add(5 * time.Second); !found && time.Now().Before(deadline); {
			right.Receive(0, &b, 32)
			for _, m := range b.Mbufs[:b.N] {
				found = found || string(m.Bytes()) == want
			}
			Free(b.Mbufs[:b.N])
		}
		if !found {
			t.Error("what left sent did not arrive at right")
		}

		for _, p := range []*Port{left, right} {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		if promiscuous(t, "right") {
			t.Error("right stays promiscuous")
		}

		// A port whose interface goes away can be closed.
		if right, err = OpenPort(rightCfg); err != nil {
			t.Fatal(err)
		}
		if err := right.Start(); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkDel(veth); err != nil {
			t.Fatal(err)
		}
		if err := right.Close(); err != nil {
			t.Errorf("close after the interface went away: %v", err)
		}
		if err := pool.Free(); err != nil {
			t.Error(err)
		}
		if err := Cleanup(); err != nil {
			t.Error(err)
		}
	})
}

func promiscuous(t *testing.T, name string) bool {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().RawFlags&unix.IFF_PROMISC != 0
}
