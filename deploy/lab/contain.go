// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// containment says, in the environment, which of Contain's processes this is.
const containment = "WEIR_LAB_CONTAINMENT"

// Contain makes what a test run starts end with it, however it ends. It is the first line of a
// TestMain, and returns in a new process, inside a PID namespace: when that process ends, or the
// one that called Contain is killed, or the process that started that one (`go test`), the kernel
// kills all that is left in the namespace. A signal on the parent's death would not do: weir's data
// plane outlives weir on purpose.
//
//	the caller                dies with its parent; takes its child with it
//	  first process inside    ends what is left when it ends; adopts and reaps orphans
//	    the tests             Contain returns
//
// Mounts are the tests' own too, so a named network namespace is not seen outside. Of a killed run
// its empty name is left, until RemoveNamed.
func Contain() {
	code, err := 0, error(nil)
	switch os.Getenv(containment) {
	case "tests":
		os.Unsetenv(containment) // a run inside this one is contained by itself
		return
	case "first":
		code, err = first()
	default:
		code, err = outside()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "contain the tests in a PID namespace: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

// outside starts the first process of a PID namespace and waits for it.
func outside() (int, error) {
	runtime.LockOSThread() // death signals are a matter of threads
	parent := os.Getppid()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return 0, fmt.Errorf("prctl PR_SET_PDEATHSIG: %w", err)
	}
	if os.Getppid() != parent {
		return 0, errors.New("the process that started this one has ended")
	}
	cmd, err := again("first")
	if err != nil {
		return 0, err
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer forward(cmd.Process)()
	cmd.Wait()
	return exitCode(unix.WaitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus))), nil
}

// first starts the tests, and reaps every process inside until the tests end.
func first() (int, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 0, fmt.Errorf("mount /proc: %w", err)
	}
	cmd, err := again("tests")
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer forward(cmd.Process)()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case pid == cmd.Process.Pid:
			return exitCode(status), nil
		}
	}
}

// again is this program with its arguments, as another of Contain's processes.
func again(part string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), containment+"="+part)
	return cmd, nil
}

// forward hands signals on to a process; SIGQUIT among them, with which `go test` asks for a stack
// trace.
func forward(p *os.Process) (stop func()) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	go func() {
		for s := range signals {
			unix.Kill(p.Pid, s.(unix.Signal)) // not p.Signal: first reaps the process without p's knowledge
		}
	}()
	return func() { signal.Stop(signals) }
}

// exitCode is the shell's: 128 and the signal for a process that a signal ended.
func exitCode(s unix.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// TempDir makes a directory whose name begins with prefix, for a whole run, and removes those that
// killed runs left behind. A lock, which the kernel drops with the process that holds it, says
// which runs live. remove ends it.
func TempDir(prefix string) (dir string, remove func(), err error) {
	lock := func(dir string, flags int) (*os.File, error) {
		f, err := os.OpenFile(filepath.Join(dir, "lock"), flags, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
	// Two runs that begin at once must not take each other's new directory, which is not locked
	// yet, for a stale one.
	all, err := os.OpenFile(filepath.Join(os.TempDir(), prefix+"lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	defer all.Close()
	if err := unix.Flock(int(all.Fd()), unix.LOCK_EX); err != nil {
		return "", nil, fmt.Errorf("%s: lock: %w", all.Name(), err)
	}
	stale, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*", "lock"))
	if err != nil {
		return "", nil, err
	}
	for _, path := range stale {
		f, err := lock(filepath.Dir(path), os.O_RDWR)
		if err != nil {
			continue // that run lives, or has just removed it
		}
		err = os.RemoveAll(filepath.Dir(path))
		f.Close()
		if err != nil {
			return "", nil, fmt.Errorf("remove what a killed run left behind: %w", err)
		}
	}
	if dir, err = os.MkdirTemp("", prefix); err != nil {
		return "", nil, err
	}
	f, err := lock(dir, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return "", nil, err
	}
	return dir, func() {
		os.RemoveAll(dir)
		f.Close()
	}, nil
}
