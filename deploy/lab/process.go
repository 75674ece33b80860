// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// namedDir is where named network namespaces live, as `ip netns` has it.
const namedDir = "/run/netns"

// Process is a program that runs in a namespace.
type Process struct {
	Cmd   *exec.Cmd
	Ended chan struct{} // closed when it has ended
	Err   error         // how it ended; valid once Ended is closed
}

// Start starts a program in the namespace. If this process dies, even of SIGKILL, the program gets
// the signal that cmd.SysProcAttr.Pdeathsig names, else SIGKILL. What the program itself starts
// does not: see Contain.
func (n *Namespace) Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{Cmd: cmd, Ended: make(chan struct{})}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	if cmd.SysProcAttr.Pdeathsig == 0 {
		cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	}
	started := make(chan error, 2)
	go func() {
		// The kernel means the death of the thread that starts the program, so that thread stays
		// until the end.
		p.Err = n.Do(func() error {
			err := cmd.Start()
			started <- err
			if err != nil {
				return err
			}
			return cmd.Wait()
		})
		started <- p.Err // should the namespace not have been entered
		close(p.Ended)
	}()
	if err := <-started; err != nil {
		return nil, n.fault("start "+cmd.Path, err)
	}
	return p, nil
}

// RemoveNamed ends every process in the namespaces whose names begin with prefix and removes them;
// their interfaces go with them. It is the end of a run and, for what a killed run left behind, the
// beginning of one.
func RemoveNamed(prefix string) error {
	paths, err := Named(prefix)
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range paths {
		errs = append(errs, endProcesses(path))
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL { // EINVAL: made, but not mounted yet
			errs = append(errs, fmt.Errorf("network namespace %s: unmount: %w", path, err))
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("network namespace %s: remove: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// Named returns the paths of the namespaces whose names begin with prefix.
func Named(prefix string) ([]string, error) {
	return filepath.Glob(filepath.Join(namedDir, prefix+"*"))
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
				return fmt.Errorf("network namespace %s: end process %d: %w", path, pid, err)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("network namespace %s: its processes do not end", path)
}

// processesIn lists the processes, other than this one, whose network namespace is the one at path.
func processesIn(path string) ([]int, error) {
	var want, have unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
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
