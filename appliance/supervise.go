// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// supervisor keeps a data plane: the one that listens at the socket, or a child of its own.
type supervisor struct {
	log    *slog.Logger
	socket string
	conn   *conn         // nil: none
	child  *exec.Cmd     // nil: the data plane is somebody else's, such as systemd's
	exited chan struct{} // closed when child has ended
	gone   bool
}

// connectWait is how long a data plane may take until it listens.
const connectWait = 10 * time.Second

// connect meets a data plane, and starts one if nobody listens.
func (s *supervisor) connect(ctx context.Context) error {
	s.reap()
	if c, err := dial(s.socket); err == nil {
		s.conn, s.gone = c, false
		s.log.Info("using the data plane that is there", "socket", s.socket)
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot start the data plane: %w", err)
	}
	cmd := exec.Command(self, "dataplane", "--socket", s.socket)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "GOGC=") || strings.HasPrefix(v, "GOMEMLIMIT=")
	})
	// Signals of the terminal are control's to act on.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start the data plane: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	s.child, s.exited = cmd, exited
	for deadline := time.Now().Add(connectWait); ; {
		if c, err := dial(s.socket); err == nil {
			s.conn, s.gone = c, false
			return nil
		} else if time.Now().After(deadline) {
			s.reap()
			return fmt.Errorf("the data plane did not listen within %v: %w", connectWait, err)
		}
		select {
		case <-exited:
			s.child = nil
			return fmt.Errorf("the data plane ended at once: %v", cmd.ProcessState)
		case <-ctx.Done():
			s.reap()
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// dead reports whether the data plane has gone: its end of the socket is closed.
func (s *supervisor) dead() bool {
	if s.gone || s.conn == nil {
		return true
	}
	p := []unix.PollFd{{Fd: int32(s.conn.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 0); err != nil || n == 0 {
		return false // EINTR: ask again next time
	}
	s.log.Error("the data plane died")
	s.died()
	return true
}

// died notes that the connection is of no use any more.
func (s *supervisor) died() { s.gone = true }

// reap closes the connection, and ends and awaits the child, if there are any.
func (s *supervisor) reap() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
	if s.child != nil {
		select {
		case <-s.exited:
		case <-time.After(500 * time.Millisecond): // it stops by itself when control's end is closed
			s.child.Process.Kill()
			<-s.exited
		}
		s.child = nil
	}
}

// stop ends the data plane in order.
func (s *supervisor) stop() {
	if s.conn == nil || s.gone {
		s.reap()
		return
	}
	if err := s.conn.ask(msgStop, 0, nil); err != nil && !errors.As(err, new(lost)) {
		s.log.Warn("the data plane did not stop in order", "error", err)
	}
	if s.child != nil {
		select {
		case <-s.exited:
			s.child = nil
		case <-time.After(5 * time.Second):
			s.log.Warn("the data plane takes too long to end; killed")
		}
	}
	s.reap()
}
