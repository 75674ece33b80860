// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"weir/pipeline/generation"
	"weir/pipeline/state"

	"golang.org/x/sys/unix"

	"weir/appliance/link"
)

// supervisor keeps a data plane: the one that listens at the socket, or a child.
type supervisor struct {
	log        *slog.Logger
	socket     string
	attachOnly bool          // never start one: a service manager does
	conn       *link.Conn    // nil: none
	supervised bool          // the data plane was started by a weir run, this one or an earlier
	child      *exec.Cmd     // nil: the data plane is not this process's child
	exited     chan struct{} // closed when child has ended
	gone       bool
}

// connectWait is how long a data plane may take until it listens.
const connectWait = 10 * time.Second

// running is a data plane that forwards already, and what it forwards with. The descriptors are the
// holder's.
type running struct {
	number uint64
	start  link.StartConfig
	state  int
	gen    int
	grown  int
}

// connect meets a data plane; if nobody listens it starts one, or, with attachOnly, waits for one.
// It returns what the data plane runs already, nil if nothing.
func (s *supervisor) connect(ctx context.Context) (*running, error) {
	for deadline := time.Now().Add(connectWait); ; {
		r, err := s.meet(ctx)
		// The socket of a data plane that was killed takes connections until the kernel is through
		// with it.
		if !errors.As(err, new(link.Lost)) || ctx.Err() != nil || time.Now().After(deadline) {
			return r, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// meet is one try of connect.
func (s *supervisor) meet(ctx context.Context) (*running, error) {
	s.hangUp()
	c, err := link.Dial(s.socket)
	if err != nil && !s.attachOnly {
		s.reap()
		if err := s.spawn(); err != nil {
			return nil, err
		}
	}
	for deadline := time.Now().Add(connectWait); err != nil; c, err = link.Dial(s.socket) {
		if time.Now().After(deadline) {
			s.reap()
			return nil, fmt.Errorf("no data plane listens after %v: %w", connectWait, err)
		}
		select {
		case <-s.exited: // nil without a child: never
			state := s.child.ProcessState
			s.child, s.exited = nil, nil
			return nil, fmt.Errorf("the data plane ended at once: %v", state)
		case <-ctx.Done():
			s.reap()
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	s.conn, s.gone = c, false
	r, err := s.hello()
	if err != nil {
		s.reap()
		return nil, fmt.Errorf("data plane at %s: %w", s.socket, err)
	}
	return r, nil
}

// hello asks what the data plane does.
func (s *supervisor) hello() (*running, error) {
	if err := s.conn.Send(link.Hello, 0, nil); err != nil {
		return nil, link.Lost{Err: err}
	}
	kind, number, payload, err := s.conn.Answer()
	switch {
	case err != nil:
		return nil, err
	case kind == link.Idle:
		s.supervised = s.child != nil
		return nil, nil
	case kind != link.Running:
		return nil, fmt.Errorf("answered with message %d: it has another version; stop it and start again", kind)
	}
	r := &running{number: number, state: s.conn.Take(0), gen: s.conn.Take(1), grown: s.conn.Take(2)}
	if err := json.Unmarshal(payload, &r.start); err != nil {
		return nil, fmt.Errorf("its answer cannot be read: %w; it is of another version: stop it and start again", err)
	}
	s.supervised = r.start.Supervised
	return r, nil
}

// isOurs reports whether the data plane runs on this state; it closes the descriptors.
func (r *running) isOurs(state *state.State) bool {
	var a, b unix.Stat_t
	err := errors.Join(unix.Fstat(r.state, &a), unix.Fstat(state.Segment.FD(), &b))
	unix.Close(r.state)
	unix.Close(r.gen)
	unix.Close(r.grown)
	return err == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// segments maps what a running data plane forwards with. It fails when that is of another layout.
func (r *running) segments() (*state.State, *generation.Generation, error) {
	state, err := state.Attach(r.state, r.grown)
	if err != nil {
		return nil, nil, err
	}
	g := new(generation.Generation)
	if err := g.Attach(r.gen); err != nil {
		state.Close()
		return nil, nil, err
	}
	return state, g, nil
}

// spawn starts a data plane as a child. It outlives this process, should that crash: packets do not
// stop for it.
func (s *supervisor) spawn() error {
	program, err := link.DataplaneProgram()
	if err != nil {
		return fmt.Errorf("cannot start the data plane: %w", err)
	}
	cmd := exec.Command(program, "--socket", s.socket)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "GOGC=") || strings.HasPrefix(v, "GOMEMLIMIT=")
	})
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // the terminal's signals are control's to act on
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start the data plane: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	s.child, s.exited = cmd, exited
	return nil
}

// dead reports whether the data plane has gone: its end of the socket is closed.
func (s *supervisor) dead() bool {
	if s.gone || s.conn == nil {
		return true
	}
	p := []unix.PollFd{{Fd: int32(s.conn.FD), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 0); err != nil || n == 0 {
		return false // EINTR: ask again next time
	}
	s.log.Error("the data plane died")
	s.died()
	return true
}

// died notes that the connection is of no use any more.
func (s *supervisor) died() { s.gone = true }

// hangUp closes the connection, if there is one.
func (s *supervisor) hangUp() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// reap closes the connection, and ends and awaits the child, if there are any.
func (s *supervisor) reap() {
	s.hangUp()
	if s.child != nil {
		s.child.Process.Kill() // it is dead already, or does not answer
		<-s.exited
		s.child, s.exited = nil, nil
	}
}

// release ends the data plane in order if a weir run started it; a service manager's goes on
// forwarding.
func (s *supervisor) release() {
	if s.conn != nil && !s.gone && s.supervised {
		s.halt()
	}
	if s.supervised {
		s.reap()
	} else if s.conn != nil {
		s.log.Info("the data plane keeps forwarding", "socket", s.socket)
		s.hangUp()
	}
}

// halt tells the data plane to end, and waits until it has.
func (s *supervisor) halt() {
	if err := s.conn.Ask(link.Stop, 0, nil); err != nil && !errors.As(err, new(link.Lost)) {
		s.log.Warn("the data plane did not stop cleanly", "error", err)
		return
	}
	s.conn.Patience(5 * time.Second)
	if _, _, _, err := s.conn.Receive(); errors.Is(err, unix.EAGAIN) {
		s.log.Warn("the data plane takes too long to stop")
	} else if s.child != nil {
		select {
		case <-s.exited:
		case <-time.After(time.Second):
		}
	}
	s.gone = true
}
