// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"weir/pipeline/generation"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/appliance/dataplane"
	"weir/config"
	"weir/dpdk"
	"weir/dpdk/dpdktest"
)

// rests are the ways to rest that are compared.
var rests = []struct {
	name       string
	idle       config.Idle
	nap        dataplane.Backoff
	interrupts bool
}{
	{"busy", config.IdleBusy, dataplane.Backoff{}, false},
	{"sleep", config.IdleSleep, dataplane.DefaultBackoff, false},
	{"interrupt-several-workers", config.IdleSleep, dataplane.DefaultBackoff, true},
	{"interrupt", config.IdleSleep, dataplane.WokenBackoff, true},
}

// BenchmarkRest measures a worker between two taps: the share of a core that its thread, and that
// the whole process, takes when nothing comes, and the latency of single packets, 97 a second, each
// of which finds it at rest. Each way is a process with its own network namespace.
func BenchmarkRest(b *testing.B) {
	const env = "WEIR_REST_RESULT"
	for _, r := range rests {
		b.Run(r.name, func(b *testing.B) {
			path := os.Getenv(env)
			if path != "" {
				text, err := json.Marshal(measureRest(b, r.idle, r.nap, r.interrupts))
				if err == nil {
					err = os.WriteFile(path, text, 0o600)
				}
				if err != nil {
					b.Fatal(err)
				}
				return
			}
			path = filepath.Join(b.TempDir(), "result")
			cmd := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkRest$/^"+r.name+"$", "-test.benchtime=1x")
			cmd.Env = append(os.Environ(), env+"="+path)
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				b.Fatal(err)
			}
			var figures map[string]float64
			if err := json.Unmarshal(text, &figures); err != nil {
				b.Fatal(err)
			}
			for unit, v := range figures {
				b.ReportMetric(v, unit)
			}
			b.ReportMetric(0, "ns/op") // says nothing here
		})
	}
}

func measureRest(b *testing.B, idle config.Idle, nap dataplane.Backoff, interrupts bool) map[string]float64 {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil { // nobody sends but us
		b.Fatal(err)
	}
	pool := dpdktest.Mempool(b, 4095)
	f := &weirForwarder{done: make(chan struct{})}
	var g *generation.Generation
	var err error
	if f.state, g, err = newGateway(1024, 1, ""); err != nil {
		b.Fatal(err)
	}
	defer f.state.Close()
	defer g.Close()
	*f.gens.At(g.Number) = *g
	f.state.Publish(g.Number)
	for _, device := range []string{"net_tap0,iface=tap0", "net_tap1,iface=tap1"} {
		f.ports = append(f.ports, dpdktest.Open(b, dpdk.PortConfig{Name: device, Device: device, RxInterrupts: interrupts, Mempool: dpdktest.From(pool)}))
	}
	waiter, err := dataplane.NewWaiter(f.ports, 0)
	if err != nil {
		b.Fatal(err)
	}
	if waiter != nil {
		defer waiter.Close()
	}
	w := f.worker(1, pool, g.Number, idle, nap)
	w.Waiter = waiter
	if interrupts != (w.Waiter != nil) {
		b.Fatalf("interrupts %t, asked %t", w.Waiter != nil, interrupts)
	}
	if err := f.start(w); err != nil {
		b.Fatal(err)
	}
	defer f.halt()

	in, out := packetSocket(b, "tap0"), packetSocket(b, "tap1")
	defer unix.Close(in)
	defer unix.Close(out)
	figures := map[string]float64{}
	cpu := func() (own, process uint64) {
		own, err := f.cpu()
		if err != nil {
			b.Fatal(err)
		}
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return own, uint64(u.Utime.Nano() + u.Stime.Nano())
	}
	var cpus unix.CPUSet
	cpus.Set(0)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.SchedSetaffinity(0, &cpus)
	start := time.Now()
	own, process := cpu()
	time.Sleep(3 * time.Second)
	ownThen, processThen := cpu()
	elapsed := float64(time.Since(start))
	figures["%core"], figures["%process"] = float64(ownThen-own)/elapsed*100, float64(processThen-process)/elapsed*100

	fl := flows{snat: true, first: firstSNAT, instances: 1, remotes: []uint32{1}}
	frame := make([]byte, 64)
	frame = frame[:fl.put(frame, flow{}, 0, 64, 0)]
	back := make([]byte, 2048)
	var took []float64
	start = time.Now()
	own, _ = cpu()
	for i := range 1000 {
		time.Sleep(time.Second / 97)
		sent := time.Now()
		if _, err := unix.Write(in, frame); err != nil {
			b.Fatal(err)
		}
		for {
			if n, err := unix.Read(out, back); err == nil && n == len(frame) {
				break
			}
			if time.Since(sent) > 3*time.Second {
				b.Fatalf("packet %d did not come back", i)
			}
		}
		took = append(took, float64(time.Since(sent).Nanoseconds())/1000)
	}
	ownThen, _ = cpu()
	figures["%core-at-97/s"] = float64(ownThen-own) / float64(time.Since(start)) * 100
	slices.Sort(took)
	for name, q := range map[string]int{"us-p50": 500, "us-p90": 900, "us-p99": 990, "us-max": 999} {
		figures[name] = took[q]
	}
	return figures
}

// packetSocket reads and writes an interface's frames.
func packetSocket(b *testing.B, name string) int {
	link, err := netlink.LinkByName(name)
	if err != nil {
		b.Fatal(err)
	}
	const every = uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(every))
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: link.Attrs().Index})
	}
	if err != nil {
		b.Fatal(err)
	}
	return fd
}
