// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An interface has one data plane; whoever cannot write to the directory cannot take it first.
func TestClaim(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	const device = "net_af_packet0,iface=weirx0,framecnt=8"
	// What any local user can take.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@weir/interface/weirx0"}); err != nil {
		t.Fatal(err)
	}
	first, err := claim(dir, device)
	if err != nil {
		t.Fatalf("beside a squatter: %v", err)
	}
	if _, err := claim(dir, device); err == nil || !strings.Contains(err.Error(), "another data plane uses it") {
		t.Errorf("a second time: %v", err)
	}
	other, err := claim(dir, "net_af_packet1,iface=weirx1")
	if err != nil {
		t.Errorf("another interface: %v", err)
	}
	d := plane{locks: []*os.File{first, other}}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if again, err := claim(dir, device); err != nil {
		t.Errorf("after its end: %v", err)
	} else {
		again.Close()
	}
	if none, err := claim(dir, "0000:3b:00.0"); none != nil || err != nil {
		t.Errorf("a device that is no interface: %v, %v", none, err)
	}
	for _, name := range []string{"..", "a/b", ""} {
		if _, err := claim(dir, "net_af_packet0,iface="+name); err == nil {
			t.Errorf("interface %q has a lock", name)
		}
	}

	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := claim(dir, device); err == nil || !strings.Contains(err.Error(), "others may write") {
		t.Errorf("in a directory that others may write to: %v", err)
	}
}

// Who may command is asked of the kernel.
func TestCommanders(t *testing.T) {
	list, err := (&Options{Control: "nobody"}).commanders()
	if err != nil || len(list) != 3 || list[2] != 65534 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := (&Options{Control: "no such user"}).commanders(); err == nil {
		t.Error("a user that does not exist may command")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	self := uint32(os.Geteuid())
	for _, c := range []struct {
		who  []uint32
		want bool
	}{{[]uint32{self}, true}, {[]uint32{self + 1}, false}, {nil, false}} {
		d := plane{commanders: c.who}
		if n := testing.AllocsPerRun(10, func() {
			if d.mayCommand(fds[0]) != c.want {
				t.Errorf("%v: may command is %v", c.who, !c.want)
			}
		}); n != 0 {
			t.Errorf("asking allocates %v times", n)
		}
	}
}
