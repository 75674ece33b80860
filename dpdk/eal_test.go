// SPDX-License-Identifier: Apache-2.0

package dpdk

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// alone runs body in a separate process, because EAL starts once a process. Setup, if any, may
// change that process.
func alone(t *testing.T, setup func(*exec.Cmd), body func(*testing.T)) {
	t.Helper()
	const env = "WEIR_DPDK_ALONE"
	if os.Getenv(env) != "" {
		body(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), env+"=1", "TMPDIR="+t.TempDir())
	if setup != nil {
		setup(cmd)
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("%v\n%s", err, out)
	}
}

var quiet = slog.New(slog.DiscardHandler)

func plain() EALConfig { return EALConfig{Memory: 64 << 20, NoHuge: true, Log: quiet} }

func TestInitOnceAndCleanup(t *testing.T) {
	alone(t, nil, func(t *testing.T) {
		tmp := t.TempDir()
		t.Setenv("TMPDIR", tmp)
		t.Setenv("RUNTIME_DIRECTORY", "/run/ours")
		var before, after unix.CPUSet
		if err := unix.SchedGetaffinity(os.Getpid(), &before); err != nil {
			t.Fatal(err)
		}

		if _, err := NewMempool("early", 64, 2176, 0); !errors.Is(err, errNotRunning) {
			t.Errorf("pool before Init: %v", err)
		}
		if err := RegisterThread(0); !errors.Is(err, errNotRunning) {
			t.Errorf("thread before Init: %v", err)
		}
		if err := Init(plain()); err != nil {
			t.Fatal(err)
		}
		if HugePages() {
			t.Error("huge pages, although they were declined")
		}
		if err := Init(plain()); !errors.Is(err, errBegun) {
			t.Errorf("second Init: %v", err)
		}
		if err := unix.SchedGetaffinity(os.Getpid(), &after); err != nil || before != after {
			t.Errorf("affinity was %v, is %v, %v", before, after, err)
		}
		if got := os.Getenv("RUNTIME_DIRECTORY"); got != "/run/ours" {
			t.Errorf("RUNTIME_DIRECTORY is %q after Init", got)
		}
		if left, err := filepath.Glob(tmp + "/*"); err != nil || len(left) > 0 {
			t.Errorf("Init leaves %v, %v", left, err)
		}
		if err := Cleanup(); err != nil {
			t.Error(err)
		}
		if err := Cleanup(); !errors.Is(err, errNotRunning) {
			t.Errorf("second Cleanup: %v", err)
		}
		if err := Init(plain()); !errors.Is(err, errBegun) {
			t.Errorf("Init after Cleanup: %v", err)
		}
	})
}

// Two processes run EAL at the same time.
func TestSideBySide(t *testing.T) {
	alone(t, nil, func(t *testing.T) {
		if err := Init(plain()); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(os.Args[0], "-test.run=^TestInitOnceAndCleanup$").CombinedOutput(); err != nil {
			t.Errorf("the other process: %v\n%s", err, out)
		}
		if _, err := NewMempool("ours", 64, 2176, 0); err != nil {
			t.Errorf("after the other process: %v", err)
		}
	})
}

func TestInitRefused(t *testing.T) {
	alone(t, nil, func(t *testing.T) {
		cfg := plain()
		cfg.Memory = 1 << 20
		if err := Init(cfg); err == nil || !strings.Contains(err.Error(), "expected at least 16777216") {
			t.Errorf("1 MiB: %v", err)
		}
		cfg = plain()
		cfg.Args = []string{"--main-lcore", "77"}
		err := Init(cfg)
		var refused *Error
		if !errors.As(err, &refused) || refused.Call != "rte_eal_init" || refused.Hint == "" ||
			!strings.Contains(err.Error(), `"--main-lcore" "77"`) || !slices.Contains(refused.Log, "EAL: Invalid 'command line' arguments.") {
			t.Errorf("bad argument: %v", err)
		}
		if err := Init(plain()); !errors.Is(err, errBegun) {
			t.Errorf("Init after a refused one: %v", err)
		}
	})
}

// DPDK's log reaches ours while EAL runs, and is complete once it has ended.
func TestLog(t *testing.T) {
	alone(t, nil, func(t *testing.T) {
		var b bytes.Buffer
		cfg := plain()
		cfg.Log = slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))
		if err := Init(cfg); err != nil {
			t.Fatal(err)
		}
		_, err := OpenPort(PortConfig{Name: "x", Device: "net_nosuch0", Mempool: func(int) (*Mempool, error) { return nil, nil }})
		if err == nil {
			t.Error("a device without a driver opened")
		}
		if err := Cleanup(); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			`level=DEBUG msg="EAL: Detected NUMA nodes`,
			`level=ERROR msg="EAL: failed to parse device \"net_nosuch0\"" from=dpdk`,
		} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("no %s in\n%s", want, b.String())
			}
		}
	})
}

func TestEALArgs(t *testing.T) {
	for _, c := range []struct {
		name  string
		cfg   EALConfig
		huge  bool
		cores string
		want  string
	}{
		{"plain", EALConfig{Memory: 512 << 20}, false, "0,1",
			"weir --no-telemetry --file-prefix weir-7 --lcores 0@(0,1) --no-huge --no-shconf -m 512 --no-pci"},
		{"huge, memory rounded up, PCI, further arguments",
			EALConfig{Memory: 512<<20 + 1, PCI: []string{"0000:3b:00.0", "0000:3b:00.1"}, Args: []string{"--iova-mode", "va"}}, true, "3",
			"weir --no-telemetry --file-prefix weir-7 --lcores 0@(3) --in-memory -m 513 -a 0000:3b:00.0 -a 0000:3b:00.1 --iova-mode va"},
		{"cores that DPDK cannot number", EALConfig{Memory: 16 << 20}, false, "",
			"weir --no-telemetry --file-prefix weir-7 --no-huge --no-shconf -m 16 --no-pci"},
	} {
		if diff := cmp.Diff(strings.Fields(c.want), ealArgs(c.cfg, c.huge, c.cores, 7)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestCoreList(t *testing.T) {
	var s unix.CPUSet
	for _, c := range []int{0, 2, 127, 128, 500} {
		s.Set(c)
	}
	if got := coreList(&s); got != "0,2,127" {
		t.Errorf("got %s", got)
	}
}

// sysfs makes a tree of the kernel's small files.
func sysfs(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestFreeHugeMemory(t *testing.T) {
	const dir = "kernel/mm/hugepages/hugepages-"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  uint64
	}{
		{"none", nil, 0},
		{"two sizes", map[string]string{dir + "2048kB/free_hugepages": "3\n", dir + "1048576kB/free_hugepages": "1\n"}, 3<<21 + 1<<30},
		{"reserved by others", map[string]string{dir + "2048kB/free_hugepages": "3\n", dir + "2048kB/resv_hugepages": "2\n"}, 1 << 21},
		{"all reserved", map[string]string{dir + "2048kB/free_hugepages": "3\n", dir + "2048kB/resv_hugepages": "4\n"}, 0},
	} {
		if got := freeHugeMemory(sysfs(t, c.files)); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}

func TestError(t *testing.T) {
	e := &Error{Object: `port "in": device "net_x0"`, Call: "rte_dev_probe", Errno: syscall.EPERM, Log: []string{"a", "b"}, Hint: "do this"}
	const want = `port "in": device "net_x0": rte_dev_probe: Operation not permitted (DPDK says: a; b): do this`
	if got := e.Error(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !errors.Is(e, syscall.EPERM) {
		t.Error("is not its error number")
	}
	bare := &Error{Object: "EAL", Call: "rte_eal_init"}
	if got := bare.Error(); got != "EAL: rte_eal_init: failed" || bare.Unwrap() != nil {
		t.Errorf("got %s, %v", got, bare.Unwrap())
	}
}

// The plain names of a device say what it is; its arguments do not.
func TestDeviceName(t *testing.T) {
	for device, want := range map[string]string{
		"net_af_packet0,iface=x": "net_af_packet0",
		"net_null0":              "net_null0",
		"3B:00.1":                "0000:3b:00.1",
		"0000:3b:00.1,arg=1":     "0000:3b:00.1",
		"10000:3b:00.1":          "10000:3b:00.1",
	} {
		if got := deviceName(device); got != want {
			t.Errorf("%s: got %s, want %s", device, got, want)
		}
	}
}

func TestCheckFrameSize(t *testing.T) {
	for _, c := range []struct {
		device string
		mtu    int
		want   string // in the error; empty: none
	}{
		{"net_af_packet0,iface=x", 1500, ""},
		{"net_af_packet0,iface=x", 1964, ""},
		{"net_af_packet0,iface=x", 1965, "add framesz=4096,blocksz=8192"},
		{"net_af_packet0,iface=x", 9000, "keeps frames of an MTU up to 1964 whole, MTU is 9000: add framesz=16384,blocksz=32768"},
		{"net_af_packet0,iface=x,framesz=16384,blocksz=32768", 9000, ""},
		{"net_af_packet0,framesz=1k", 1500, "not a number"},
	} {
		err := checkFrameSize(c.device, c.mtu)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s, MTU %d: got %v, want %q", c.device, c.mtu, err, c.want)
		}
	}
}

// Every MTU that a port may have fits, and devices that count buffers in KiB round nothing off.
func TestDataRoom(t *testing.T) {
	for mtu := minMTU; mtu <= maxMTU; mtu++ {
		room := DataRoom(mtu)
		if buf := room - Headroom; room > 65535 || buf < 2048 || buf < mtu+14+8+4 || buf%1024 != 0 && room != 65535 {
			t.Fatalf("MTU %d: %d bytes", mtu, room)
		}
	}
}

func TestLogLevel(t *testing.T) {
	for b, want := range map[byte]slog.Level{
		'1': slog.LevelError, '4': slog.LevelError, '5': slog.LevelWarn, '6': slog.LevelInfo, '7': slog.LevelDebug, '8': slog.LevelDebug,
	} {
		if got := logLevel(b); got != want {
			t.Errorf("%c: got %v, want %v", b, got, want)
		}
	}
}
