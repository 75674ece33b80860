// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The data plane's socket is its group's, in a directory that nobody else writes to; a socket that
// somebody else has put there is refused.
func TestSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "dataplane.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l)
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("the socket: %v, %v; expected mode 0660", info.Mode(), err)
	}
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	// Of another user than who listens: somebody else's listener under this name, as far as is
	// known.
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 4242, 4242); err != nil {
			t.Fatal(err)
		}
		if c, err = Dial(path); err != nil {
			t.Errorf("root listens at another user's socket: %v", err)
		} else {
			c.Close()
		}
	}
	for _, mode := range []os.FileMode{0o777, 0o775, 0o777 | os.ModeSticky} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if c, err := Dial(path); err == nil || !strings.Contains(err.Error(), "others may write") {
			t.Errorf("mode %v: dial: %v", mode, err)
			if err == nil {
				c.Close()
			}
		}
		if fd, err := Listen(path); err == nil || !strings.Contains(err.Error(), "others may write") {
			t.Errorf("mode %v: listen: %v", mode, err)
			unix.Close(fd)
		}
	}
}

// Nobody but root looks into a hardened process, and a core of it has no memory.
func TestHarden(t *testing.T) {
	const env = "WEIR_HARDENED"
	if os.Getenv(env) != "" {
		if err := Harden(); err != nil {
			t.Fatal(err)
		}
		if d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); d != 0 || err != nil {
			t.Errorf("dumpable is %d, %v; expected 0", d, err)
		}
		filter, err := os.ReadFile("/proc/self/coredump_filter")
		if strings.TrimSpace(string(filter)) != "00000010" {
			t.Errorf("coredump_filter is %q, %v", filter, err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestHarden$")
	cmd.Env = append(os.Environ(), env+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A listener that is another user than the socket's is refused.
func TestStrangeListener(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test is two users: run it as root")
	}
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "dataplane.sock")
	for at := dir; at != os.TempDir() && at != "/"; at = filepath.Dir(at) {
		if err := errors.Join(os.MkdirAll(at, 0o755), os.Chmod(at, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, 4242, 4242); err != nil {
		t.Fatal(err)
	}
	listener := exec.Command("/usr/bin/perl", "-e", `use Socket; $| = 1; socket(S, AF_UNIX, SOCK_SEQPACKET, 0) && bind(S, pack_sockaddr_un($ARGV[0])) && listen(S, 9) or die $!; print "listens"; <STDIN>`, path)
	listener.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4242, Gid: 4242}}
	in, err := listener.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := listener.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	defer listener.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(path)
	if err != nil {
		t.Errorf("the data plane's user listens at its socket: %v", err)
	} else {
		c.Close()
	}
	if err := os.Chown(path, 4243, 4243); err != nil {
		t.Fatal(err)
	}
	if c, err := Dial(path); err == nil || !strings.Contains(err.Error(), "user 4242 listens there") {
		t.Errorf("a stranger listens: %v", err)
		if err == nil {
			c.Close()
		}
	}
}

// A path that was mistyped costs nobody a file.
func TestListenKeepsFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notes")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("%v; expected that it is not a socket", err)
	}
	if b, err := os.ReadFile(path); string(b) != "mine" {
		t.Errorf("the file has %q (%v)", b, err)
	}
}
