// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"weir/deploy/lab"
)

const (
	runtimeDir   = "/run/weir-playground" // weir's socket
	readyTimeout = 30 * time.Second
	endTimeout   = 15 * time.Second
)

// gateway is a running weir.
type gateway struct {
	process *lab.Process
	log     *tail
	web     *lab.Web // of the API inside the namespace
	api     string
	door    net.Listener // the API as the machine sees it; nil: the port was taken
}

// startGateway starts weir in the namespace and waits until it forwards packets.
func startGateway(ctx context.Context, n *lab.Namespace, o options, api string) (*gateway, error) {
	program, err := absolute(o.weir)
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(runtimeDir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(runtimeDir, 0o700); err != nil {
		return nil, err
	}
	g := &gateway{log: &tail{}, api: api}
	var log io.Writer = g.log
	if o.verbose {
		log = io.MultiWriter(g.log, os.Stderr)
	}
	cmd := exec.Command(program, "run", "--config", o.config, "--socket", filepath.Join(runtimeDir, "dataplane.sock"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true,            // a Ctrl-C is ours; weir is ended in order, below
		Pdeathsig: syscall.SIGTERM, // and if this process is killed, weir does not stay
	}
	if g.process, err = n.Start(cmd); err != nil {
		return nil, err
	}
	g.web = n.Web(api, 2*time.Second)
	if err := g.waitReady(ctx); err != nil {
		return nil, errors.Join(err, g.stop())
	}
	if g.door, err = net.Listen("tcp", api); err == nil {
		go g.serveDoor(n)
	}
	return g, nil
}

func (g *gateway) waitReady(ctx context.Context) error {
	deadline := time.After(readyTimeout)
	for {
		if _, err := g.web.Get("/readyz"); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("interrupted before weir was ready")
		case <-g.process.Ended:
			return fmt.Errorf("weir ended before it was ready (%v); the end of its log:\n%s", g.process.Err, g.log)
		case <-deadline:
			return fmt.Errorf("weir is not ready after %v; the end of its log:\n%s", readyTimeout, g.log)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends weir in order. Ending with anything but exit code 0, or before it was asked to, is an
// error.
func (g *gateway) stop() error {
	defer os.RemoveAll(runtimeDir)
	if g.door != nil {
		g.door.Close()
	}
	select {
	case <-g.process.Ended:
		return fmt.Errorf("weir ended by itself (%v); the end of its log:\n%s", g.process.Err, g.log)
	default:
	}
	g.process.Cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-g.process.Ended:
	case <-time.After(endTimeout):
		syscall.Kill(-g.process.Cmd.Process.Pid, syscall.SIGKILL)
		<-g.process.Ended
		return fmt.Errorf("weir did not end within %v of SIGTERM; the end of its log:\n%s", endTimeout, g.log)
	}
	if g.process.Err != nil {
		return fmt.Errorf("weir did not end well: %w; the end of its log:\n%s", g.process.Err, g.log)
	}
	return nil
}

// serveDoor lets the machine reach the API, which listens inside the namespace.
func (g *gateway) serveDoor(n *lab.Namespace) {
	for {
		outer, err := g.door.Accept()
		if err != nil {
			return
		}
		go func() {
			defer outer.Close()
			inner, err := n.Dial("tcp", g.api)
			if err != nil {
				return
			}
			defer inner.Close()
			go func() {
				io.Copy(inner, outer)
				inner.Close()
			}()
			io.Copy(outer, inner)
		}()
	}
}

// tail keeps the last lines that were written to it.
type tail struct {
	mu    sync.Mutex
	lines []string
}

const tailLines = 40

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, strings.Split(strings.TrimRight(string(b), "\n"), "\n")...)
	t.lines = t.lines[max(0, len(t.lines)-tailLines):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}
