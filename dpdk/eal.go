// SPDX-License-Identifier: Apache-2.0

package dpdk

// #cgo pkg-config: libdpdk
// #cgo CFLAGS: -fstack-protector-strong -D_FORTIFY_SOURCE=2
// #include <stdlib.h>
// #include "dpdk.h"
// #include <rte_eal.h>
import "C"

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// EALConfig says how EAL starts.
type EALConfig struct {
	Memory uint64       // bytes for mempools and rings, rounded up to MiB; at least 16 MiB
	PCI    []string     // PCI addresses that DPDK may take; empty: it does not look at PCI at all
	Args   []string     // further EAL arguments, appended as they are
	Log    *slog.Logger // receives DPDK's log; nil: slog.Default()
	NoHuge bool         // plain memory even where there are huge pages: replay, tests
}

const minMemory = 16 << 20

// The EAL is one per process: DPDK keeps it in globals, and it cannot be started again.
var eal struct {
	mu    sync.Mutex // one control call at a time
	begun bool
	work  chan func() // to EAL's thread; nil unless EAL runs
	log   *eallog
}

var (
	errBegun      = errors.New("EAL: it starts once a process, and was started before: start a new process")
	errNotRunning = errors.New("EAL: not running: call Init first")
)

// Init starts EAL. It works once a process, even when it fails. Neither the caller's thread nor the
// process's affinity changes: EAL gets its own thread, which may run on any core that the
// caller may run on, and nothing is left in the file system. Memory is huge pages when enough are
// free, else plain pages, with a warning.
func Init(cfg EALConfig) error {
	eal.mu.Lock()
	defer eal.mu.Unlock()
	if eal.begun {
		return errBegun
	}
	if cfg.Memory < minMemory {
		return fmt.Errorf("EAL: memory is %d bytes, expected at least %d", cfg.Memory, minMemory)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("EAL: sched_getaffinity: %w", err)
	}

	// DPDK cannot fall back from huge pages to plain ones by itself, nor be asked twice.
	huge := !cfg.NoHuge
	if free := freeHugeMemory("/sys"); huge && free < cfg.Memory {
		huge = false
		cfg.Log.Warn("plain memory instead of huge pages: packet buffers miss the TLB more often, so packets cost more "+
			"time, and a PCI device works only with an IOMMU; reserve huge pages before the start (vm.nr_hugepages)",
			"wanted_bytes", cfg.Memory, "free_huge_bytes", free)
	}
	args := ealArgs(cfg, huge, coreList(&cpus), os.Getpid())

	// EAL makes a directory for what it shares with other processes, and leaves it. We share
	// nothing.
	removeLeftovers(os.TempDir())
	dir, err := os.MkdirTemp("", leftover)
	if err != nil {
		return fmt.Errorf("EAL: directory for its start: %w: point TMPDIR to one that can be written", err)
	}
	defer os.RemoveAll(dir)
	if held, err := os.Open(dir); err == nil {
		unix.Flock(int(held.Fd()), unix.LOCK_EX) // until it is removed
		defer held.Close()
	}
	const env = "RUNTIME_DIRECTORY"
	before, had := os.LookupEnv(env)
	os.Setenv(env, dir)
	defer func() {
		if had {
			os.Setenv(env, before)
		} else {
			os.Unsetenv(env)
		}
	}()

	if eal.log, err = openLog(cfg.Log); err != nil {
		return err
	}
	eal.begun = true
	work := make(chan func())
	go func() {
		// Never unlocked: the thread has EAL's affinity and lcore number, and ends with this
		// goroutine.
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	eal.work = work
	err = callLocked(fmt.Sprintf("EAL with arguments %q", args[1:]), "rte_eal_init", func() C.int {
		argv := make([]*C.char, len(args)) // DPDK keeps the strings: they are never freed
		for i, a := range args {
			argv[i] = C.CString(a)
		}
		return C.weir_eal_init(C.int(len(argv)), &argv[0])
	})
	if err != nil {
		stop()
	}
	return err
}

// leftover is the beginning of the name of EAL's directory.
const leftover = "weir-eal-"

// removeLeftovers removes the directories of starts of this user's that were killed: nobody holds
// their lock. One that is a minute old has it or never will.
func removeLeftovers(tmp string) {
	dirs, _ := filepath.Glob(filepath.Join(tmp, leftover+"*"))
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < time.Minute || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
			continue
		}
		f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		f.Close()
	}
}

// ealArgs is EAL's command line. EAL's main thread is the only lcore, allowed on all cores, so that
// EAL neither pins it nor starts others; our workers register themselves.
func ealArgs(cfg EALConfig, huge bool, cores string, pid int) []string {
	args := []string{"weir", "--no-telemetry", "--file-prefix", fmt.Sprintf("weir-%d", pid)}
	if cores != "" {
		args = append(args, "--lcores", "0@("+cores+")")
	}
	mib := strconv.FormatUint((cfg.Memory+1<<20-1)>>20, 10)
	if huge {
		args = append(args, "--in-memory", "-m", mib)
	} else {
		args = append(args, "--no-huge", "--no-shconf", "-m", mib)
	}
	if len(cfg.PCI) == 0 {
		args = append(args, "--no-pci")
	}
	for _, addr := range cfg.PCI {
		args = append(args, "-a", addr)
	}
	return append(args, cfg.Args...)
}

// coreList writes the set as "0,1,5", without the cores that DPDK has no number for.
func coreList(cpus *unix.CPUSet) string {
	var list []string
	for c := range C.WEIR_MAX_LCORE {
		if cpus.IsSet(c) {
			list = append(list, strconv.Itoa(c))
		}
	}
	return strings.Join(list, ",")
}

// freeHugeMemory returns how many bytes of huge pages, of all sizes and nodes, nobody has taken or
// reserved.
func freeHugeMemory(sys string) uint64 {
	sizes, _ := filepath.Glob(sys + "/kernel/mm/hugepages/hugepages-*kB")
	var sum uint64
	for _, dir := range sizes {
		var kb uint64
		if _, err := fmt.Sscanf(filepath.Base(dir), "hugepages-%dkB", &kb); err != nil {
			continue
		}
		free, reserved := readUint(dir+"/free_hugepages"), readUint(dir+"/resv_hugepages")
		if free > reserved {
			sum += (free - reserved) * kb << 10
		}
	}
	return sum
}

// readUint reads a number from a file of the kernel's; what is not there is 0.
func readUint(path string) uint64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// HugePages tells whether EAL runs on huge pages.
func HugePages() bool { return C.rte_eal_has_hugepages() == 1 }

// Cleanup ends EAL and frees its memory. Ports are closed and pools freed before. EAL cannot be
// started again.
func Cleanup() error {
	eal.mu.Lock()
	defer eal.mu.Unlock()
	err := callLocked("EAL", "rte_eal_cleanup", func() C.int { return C.rte_eal_cleanup() })
	if err == nil {
		stop()
	}
	return err
}

func running() bool {
	eal.mu.Lock()
	defer eal.mu.Unlock()
	return eal.work != nil
}

// stop ends EAL's thread and log. The caller holds eal.mu.
func stop() {
	close(eal.work)
	eal.work = nil
	eal.log.close()
}

// call runs one DPDK function on EAL's thread and returns its negative result as an *Error.
func call(object, name string, fn func() C.int) error {
	eal.mu.Lock()
	defer eal.mu.Unlock()
	return callLocked(object, name, fn)
}

// callLocked is call for callers that hold eal.mu.
func callLocked(object, name string, fn func() C.int) error {
	if eal.work == nil {
		return errNotRunning
	}
	done := make(chan error)
	eal.work <- func() {
		C.weir_log_begin()
		if rc := fn(); rc < 0 {
			done <- refusal(object, name, rc)
			return
		}
		done <- nil
	}
	return <-done
}
