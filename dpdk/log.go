// SPDX-License-Identifier: Apache-2.0

package dpdk

// #include "dpdk.h"
import "C"

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// DPDK's log leaves C through a socket that keeps messages whole: one write there, one read here.
type eallog struct {
	fd   int           // C's end
	done chan struct{} // closed when the last message was handed on
}

// openLog sends DPDK's log to l from now on.
func openLog(l *slog.Logger) (*eallog, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("EAL: socketpair for DPDK's log: %w", err)
	}
	r := os.NewFile(uintptr(fds[0]), "dpdk log")
	if rc := C.weir_log_open(C.int(fds[1])); rc < 0 {
		r.Close()
		unix.Close(fds[1])
		return nil, &Error{Object: "EAL", Call: "rte_openlog_stream", Errno: syscall.Errno(-rc)}
	}
	g := &eallog{fd: fds[1], done: make(chan struct{})}
	go g.forward(r, l)
	return g, nil
}

func (g *eallog) close() {
	C.weir_log_close()
	unix.Close(g.fd)
	<-g.done
}

func (g *eallog) forward(r *os.File, l *slog.Logger) {
	defer close(g.done)
	defer r.Close()
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		if err != nil {
			return
		}
		for _, line := range logLines(string(buf[1:n])) {
			l.Log(context.Background(), logLevel(buf[0]), line, "from", "dpdk")
		}
	}
}

// logLevel maps DPDK's level, a digit from '1' (emergency) to '8' (debug), to ours. What DPDK calls
// information is ten lines at every start: debug here.
func logLevel(b byte) slog.Level {
	switch {
	case b <= '4':
		return slog.LevelError
	case b == '5':
		return slog.LevelWarn
	case b == '6':
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// logLines splits DPDK's text into its lines, without the empty ones.
func logLines(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}
