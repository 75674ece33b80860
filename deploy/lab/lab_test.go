// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// childOf, in the environment, makes a run of these tests the one that TestContained kills: it
// starts a program that outlives its parent, says so in the directory named here, and waits.
const childOf = "WEIR_LAB_TEST_CHILD_OF"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make network namespaces: run them as root")
		os.Exit(1)
	}
	Contain()
	if dir := os.Getenv(childOf); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

func newNamespace(t *testing.T, mute bool) *Namespace {
	t.Helper()
	n, err := New(mute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// must ends the test at an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// child is a run that gets killed: in a namespace, a shell whose own child outlives it.
func child(dir string) int {
	work, _, err := TempDir(filepath.Base(dir) + "-run-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	n, err := NewNamed(filepath.Base(dir), true)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p, err := n.Start(exec.Command("/bin/sh", "-c", "setsid sleep 1000 & exit 0"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	<-p.Ended
	if err := os.WriteFile(filepath.Join(dir, "ready"), []byte(work), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {}
}

// withMark lists the processes that have text in their environment: a run and all that it has
// started.
func withMark(t *testing.T, text string) (pids []string) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/environ")
	must(t, err)
	for _, path := range paths {
		if b, _ := os.ReadFile(path); bytes.Contains(b, []byte(text)) {
			pids = append(pids, strings.Split(path, "/")[2])
		}
	}
	return pids
}

// A run is killed by SIGKILL: all that it started is gone, and the next run's beginning removes its
// directory.
func TestContained(t *testing.T) {
	dir, err := os.MkdirTemp("", "weirlab-") // its name is also the namespace's
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	mark := childOf + "=" + dir
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), mark)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill() })
	eventually(t, "the run is at work", func() bool {
		_, err := os.Stat(filepath.Join(dir, "ready"))
		return err == nil
	})
	work, err := os.ReadFile(filepath.Join(dir, "ready"))
	must(t, err)
	mine, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	namespaces := map[string]bool{}
	eventually(t, "a process outlives its parent, in a namespace", func() bool {
		for _, pid := range withMark(t, mark) {
			comm, _ := os.ReadFile(filepath.Join("/proc", pid, "comm"))
			ns, _ := os.Readlink(filepath.Join("/proc", pid, "ns/net"))
			if string(comm) == "sleep\n" && ns != mine {
				namespaces[ns] = true
			}
		}
		return len(namespaces) == 1
	})
	if named, err := Named(filepath.Base(dir)); err != nil || len(named) > 1 {
		t.Fatalf("named namespaces: %v, %v", named, err)
	}

	must(t, cmd.Process.Signal(unix.SIGKILL))
	cmd.Wait()
	eventually(t, "every process ends", func() bool { return len(withMark(t, mark)) == 0 })
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	must(t, err)
	for _, link := range links {
		if ns, _ := os.Readlink(link); namespaces[ns] {
			t.Errorf("%s is still in a namespace of the killed run", link)
		}
	}
	if _, err := os.Stat(string(work)); err != nil {
		t.Errorf("its directory: %v; nobody was there to remove it", err)
	}
	defer os.Remove(filepath.Join(os.TempDir(), filepath.Base(dir)+"-run-lock"))
	eventually(t, "the next run removes the directory", func() bool { // a process's locks end a little after its memory
		_, remove, err := TempDir(filepath.Base(dir) + "-run-")
		must(t, err)
		remove()
		_, err = os.Stat(string(work))
		return errors.Is(err, os.ErrNotExist)
	})
	must(t, RemoveNamed(filepath.Base(dir)))
	if left, err := Named(filepath.Base(dir)); err != nil || len(left) > 0 {
		t.Errorf("named namespaces are left: %v, %v", left, err)
	}
}

// A living run's directory is nobody else's to remove.
func TestTempDirOfLivingRun(t *testing.T) {
	prefix := fmt.Sprintf("weirlab-living-%d-", time.Now().UnixNano())
	first, removeFirst, err := TempDir(prefix)
	must(t, err)
	_, removeSecond, err := TempDir(prefix)
	must(t, err)
	defer os.Remove(filepath.Join(os.TempDir(), prefix+"lock"))
	if _, err := os.Stat(first); err != nil {
		t.Errorf("the second run has removed the first one's directory: %v", err)
	}
	removeFirst()
	removeSecond()
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*")); len(left) != 1 {
		t.Errorf("left: %v, expected the lock only", left)
	}
}

// TestStaleRun leaves a namespace with a process behind, as a killed run would, and removes both.
func TestStaleRun(t *testing.T) {
	const name = "weirlab-stale"
	n, err := NewNamed(name, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { RemoveNamed(name) })
	var process *os.Process
	err = n.Do(func() (err error) {
		process, err = os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := process.Wait(); ended <- err }()
	if err := RemoveNamed(name); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		process.Kill()
		t.Error("the process in the namespace still runs")
	}
	if _, err := os.Stat(filepath.Join(namedDir, name)); err == nil {
		t.Error("the namespace is still there")
	}
}

func TestPanicBecomesError(t *testing.T) {
	err := OnOwnThread(func() error { panic("boom") })
	if err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v, want the panic as an error", err)
	}
}

// Three routers in a row, the ends joined by a VXLAN, and beside them a bridge with a tap: what
// later tests are made of.
func TestThreeRouters(t *testing.T) {
	prefix, address := netip.MustParsePrefix, netip.MustParseAddr
	machines := make([]*Namespace, 5) // a guest, three routers, a guest
	for i := range machines {
		machines[i] = newNamespace(t, true)
		must(t, machines[i].Set("net/ipv4/ip_forward", "1"))
	}
	for i := range 4 {
		must(t, Connect(End{Namespace: machines[i], Link: "right"}, End{Namespace: machines[i+1], Link: "left"}))
		must(t, machines[i].Address("right", prefix(fmt.Sprintf("10.0.%d.1/24", i))))
		must(t, machines[i+1].Address("left", prefix(fmt.Sprintf("10.0.%d.2/24", i))))
	}
	first, last := machines[0], machines[4]
	if _, err := first.Ping(address("10.0.0.1"), address("10.0.3.2"), []byte("far"), 1, 100*time.Millisecond); err == nil {
		t.Fatal("a ping arrives where no route leads")
	}
	must(t, first.DefaultRoute("right", address("10.0.0.2")))
	must(t, last.DefaultRoute("left", address("10.0.3.1")))
	for i, router := range machines[1:4] {
		must(t, router.Route(prefix("10.0.0.0/16"), address(fmt.Sprintf("10.0.%d.2", i+1)))) // onwards; what is before the router is below
		for back := range i {
			must(t, router.Route(prefix(fmt.Sprintf("10.0.%d.0/24", back)), address(fmt.Sprintf("10.0.%d.1", i))))
		}
	}
	ping := func(from, to string) {
		t.Helper()
		if got, err := first.Ping(address(from), address(to), []byte("far"), 5, time.Second); err != nil || got != address(to) {
			t.Errorf("ping from %s to %s: answered by %v, %v", from, to, got, err)
		}
	}
	ping("10.0.0.1", "10.0.3.2")

	for i, end := range []struct {
		*Namespace
		own, other string
	}{{first, "10.0.0.1", "10.0.3.2"}, {last, "10.0.3.2", "10.0.0.1"}} {
		must(t, end.Add(&netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: "tunnel"}, VxlanId: 7, Port: 4789,
			SrcAddr: net.ParseIP(end.own), Group: net.ParseIP(end.other),
		}))
		must(t, end.Address("tunnel", prefix(fmt.Sprintf("172.16.0.%d/24", i+1))))
	}
	ping("172.16.0.1", "172.16.0.2")

	must(t, first.Add(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge"}}))
	must(t, first.Add(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "machine"}, Mode: netlink.TUNTAP_MODE_TAP}))
	must(t, first.Plug("machine", "bridge"))
	if l, err := first.Links.LinkByName("machine"); err != nil || l.Attrs().MasterIndex == 0 {
		t.Errorf("the tap is no port of the bridge: %v, %v", l, err)
	}
}

// The kernel counts what a packet socket and a UDP socket have no room for, and so do we.
func TestDropsAreCounted(t *testing.T) {
	a, b := newNamespace(t, true), newNamespace(t, true)
	must(t, Connect(End{Namespace: a, Link: "wire"}, End{Namespace: b, Link: "wire"}))
	must(t, a.Address("wire", netip.MustParsePrefix("10.0.0.1/24")))
	must(t, b.Address("wire", netip.MustParsePrefix("10.0.0.2/24")))
	var to *net.UDPConn
	fd := -1
	must(t, b.Do(func() (err error) {
		const ip = uint16(unix.ETH_P_IP >> 8) // in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(ip)); err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
		}
		if err == nil {
			to, err = net.ListenUDP("udp", &net.UDPAddr{Port: 9})
		}
		return err
	}))
	defer unix.Close(fd)
	defer to.Close()
	must(t, to.SetReadBuffer(1))
	if _, err := RingDrops(os.Getpid()); err != nil { // and set back
		t.Fatal(err)
	}
	var from net.Conn
	must(t, a.Do(func() (err error) {
		from, err = net.Dial("udp", "10.0.0.2:9")
		return err
	}))
	defer from.Close()
	const sent = 100
	for range sent {
		from.Write(make([]byte, 1000))
	}
	var frames, datagrams uint64
	eventually(t, "drops are counted", func() bool {
		k, err := RingDrops(os.Getpid())
		must(t, err)
		frames += k
		datagrams, err = b.UDPDrops()
		must(t, err)
		return frames >= sent/2 && datagrams >= sent/2
	})
	if frames > sent || datagrams > sent {
		t.Errorf("%d frames and %d datagrams dropped of %d", frames, datagrams, sent)
	}
	if k, err := a.UDPDrops(); err != nil || k != 0 {
		t.Errorf("the sender's namespace: %d drops, %v", k, err)
	}
	if k, err := RingDrops(1 << 22); err != nil || k != 0 { // above any process number
		t.Errorf("a process that is not there: %d drops, %v", k, err)
	}
}

func TestUDPDrops(t *testing.T) {
	const v4 = "Ip: Forwarding\nIp: 1\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors\nUdp: 1 2 3 4 5 6\nUdpLite: InDatagrams RcvbufErrors\nUdpLite: 0 9\n"
	const v6 = "Udp6InErrors \t8\nUdp6RcvbufErrors \t70\nUdpLite6RcvbufErrors \t900\n"
	if got := udpDrops(v4, v6); got != 75 {
		t.Errorf("%d, want 75", got)
	}
}
