// SPDX-License-Identifier: Apache-2.0

// Package host holds what a host gets to run weir; these tests hold it against the program and a
// pretended host.
package host

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"weir/config"
)

func TestExampleConfiguration(t *testing.T) {
	for _, name := range []string{"weir.example.yaml", "tenants.example.yaml"} {
		_, warnings, err := config.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range warnings {
			t.Error(w)
		}
	}
}

// A pretended host: /sys and /proc/sys as far as host-setup looks at them, with a kernel that
// reacts.
type host struct {
	t    *testing.T
	root string
	mu   sync.Mutex // the kernel does one thing at a time
}

const (
	portA  = "0000:3b:00.0" // ixgbe
	portB  = "0000:3b:00.1" // ixgbe
	portM  = "0000:5e:00.0" // mlx5_core
	bridge = "0000:3a:00.0" // no network port
)

func newHost(t *testing.T) *host {
	h := &host{t: t, root: t.TempDir()}
	for path, content := range map[string]string{
		"sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages": "0",
		"sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages": "4096",
		"proc/sys/vm/stat_interval":       "1",
		"proc/sys/kernel/numa_balancing":  "1",
		"proc/sys/kernel/timer_migration": "0",
		"sys/bus/pci/drivers/vfio-pci/x":  "",
	} {
		h.write(path, content)
	}
	h.addDevice(portA, "0x020000", "ixgbe")
	h.addDevice(portB, "0x020000", "ixgbe")
	h.addDevice(portM, "0x020000", "mlx5_core")
	h.addDevice(bridge, "0x060400", "pcieport")
	h.write("sys/bus/pci/devices/"+portB+"/net/eth1/address", "")
	h.reactTo("sys/bus/pci/drivers_probe", func(port string) {
		driver := strings.TrimSpace(h.read("sys/bus/pci/devices/" + port + "/driver_override"))
		if driver == "" {
			driver = "ixgbe"
		}
		h.link(port, driver)
	})
	for _, driver := range []string{"ixgbe", "vfio-pci"} {
		h.reactTo("sys/bus/pci/drivers/"+driver+"/unbind", func(port string) {
			os.Remove(h.path("sys/bus/pci/devices/" + port + "/driver"))
		})
	}
	// Nothing of this machine is asked: every interface of the pretended host has an address if its
	// name is eth1.
	h.write("bin/ip", "#!/bin/sh\n[ \"$5\" != eth1 ] || echo '2: eth1 inet 192.0.2.10/24'\n")
	if err := os.Chmod(h.path("bin/ip"), 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) path(p string) string { return filepath.Join(h.root, p) }

func (h *host) write(path, content string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(path)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(h.path(path), []byte(content+"\n"), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) read(path string) string {
	b, _ := os.ReadFile(h.path(path))
	return string(b)
}

func (h *host) addDevice(port, class, driver string) {
	dir := "sys/bus/pci/devices/" + port
	h.write(dir+"/class", class)
	h.write(dir+"/driver_override", "(null)")
	h.write(dir+"/iommu_group/devices/"+port+"/x", "")
	h.link(port, driver)
}

func (h *host) link(port, driver string) {
	h.write("sys/bus/pci/drivers/"+driver+"/x", "")
	if err := os.Symlink("../../drivers/"+driver, h.path("sys/bus/pci/devices/"+port+"/driver")); err != nil {
		h.t.Error(err)
	}
}

// reactTo makes a file of the kernel's: what is written to it has an effect.
func (h *host) reactTo(path string, effect func(written string)) {
	if err := os.MkdirAll(filepath.Dir(h.path(path)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Mkfifo(h.path(path), 0o600); err != nil {
		h.t.Fatal(err)
	}
	fifo, err := os.OpenFile(h.path(path), os.O_RDWR, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { fifo.Close() })
	go func() {
		b := make([]byte, 256)
		for {
			n, err := fifo.Read(b)
			if err != nil {
				return
			}
			h.mu.Lock()
			effect(strings.TrimSpace(string(b[:n])))
			h.mu.Unlock()
		}
	}()
}

// driver is the driver of a port, "" for none.
func (h *host) driver(port string) string {
	target, err := os.Readlink(h.path("sys/bus/pci/devices/" + port + "/driver"))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return filepath.Base(target)
}

// snapshot is every regular file's content and every link's target.
func (h *host) snapshot() map[string]string {
	files := map[string]string{}
	err := filepath.WalkDir(h.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case d.Type().IsRegular():
			b, err := os.ReadFile(path)
			files[path] = string(b)
			return err
		case d.Type()&fs.ModeSymlink != 0:
			files[path], err = os.Readlink(path)
			return err
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return files
}

func (h *host) setup(args ...string) (output string, ok bool) {
	cmd := exec.Command("./host-setup", args...)
	cmd.Env = append(os.Environ(), "HOST_SETUP_ROOT="+h.root, "PATH="+h.path("bin")+":"+os.Getenv("PATH"))
	b, err := cmd.CombinedOutput()
	return string(b), err == nil
}

func (h *host) mustSetup(args ...string) string {
	h.t.Helper()
	output, ok := h.setup(args...)
	if !ok {
		h.t.Fatalf("host-setup %v failed:\n%s", args, output)
	}
	return output
}

func TestHostSetup(t *testing.T) {
	h := newHost(t)
	before := h.snapshot()

	dry := h.mustSetup("--dry-run", "--pages", "512", portA, portM)
	for path, content := range h.snapshot() {
		if before[path] != content {
			t.Errorf("--dry-run changed %s", path)
		}
	}
	if did := h.mustSetup("--pages", "512", portA, portM); did != dry {
		t.Errorf("did:\n%s\n--dry-run had said:\n%s", did, dry)
	}
	if got := h.driver(portA); got != "vfio-pci" {
		t.Errorf("%s has driver %q, want vfio-pci", portA, got)
	}
	if got := h.driver(portM); got != "mlx5_core" {
		t.Errorf("%s has driver %q, want mlx5_core: DPDK shares it with the kernel", portM, got)
	}
	for path, want := range map[string]string{
		"sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages": "512\n",
		"sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages": "4096\n", // more is somebody else's
		"proc/sys/vm/stat_interval":      "10\n",
		"proc/sys/kernel/numa_balancing": "0\n",
	} {
		if got := h.read(path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}

	after := h.snapshot()
	if again := h.mustSetup("--pages", "512", portA); again != "" {
		t.Errorf("a second run was not idle:\n%s", again)
	}
	for path, content := range h.snapshot() {
		if after[path] != content {
			t.Errorf("a second run changed %s", path)
		}
	}

	h.mustSetup("--undo")
	left := h.snapshot()
	for path, content := range left {
		if filepath.Base(path) != "driver_override" && before[path] != content { // "" and "(null)" both mean none
			t.Errorf("after --undo %s is %q, was %q", path, content, before[path])
		}
	}
	if again := h.mustSetup("--undo"); again != "" {
		t.Errorf("a second --undo was not idle:\n%s", again)
	}
}

// Whatever is refused is refused before anything changes.
func TestHostSetupRefuses(t *testing.T) {
	for _, c := range []struct {
		name    string
		args    []string
		prepare func(h *host)
		says    string
	}{
		{"no PCI address", []string{portA, "eth0"}, nil, "'eth0' is no PCI address"},
		{"no such device", []string{portA, "0000:99:00.0"}, nil, "no such PCI device"},
		{"no network port", []string{portA, bridge}, nil, "is no network port"},
		{"an interface in use", []string{portA, portB}, nil, "interface eth1 has addresses"},
		{"pages are no number", []string{"--pages", "many"}, nil, "expected a number"},
		{"unknown flag", []string{"--quick"}, nil, "usage:"},
		{"no IOMMU", []string{portA}, func(h *host) {
			os.RemoveAll(h.path("sys/bus/pci/devices/" + portA + "/iommu_group"))
		}, "no IOMMU"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			if c.prepare != nil {
				c.prepare(h)
			}
			before := h.snapshot()
			output, ok := h.setup(c.args...)
			if ok || !strings.Contains(output, c.says) {
				t.Errorf("succeeded: %v, said:\n%s\nwant a failure that says %q", ok, output, c.says)
			}
			for path, content := range h.snapshot() {
				if before[path] != content {
					t.Errorf("changed %s", path)
				}
			}
		})
	}
	h := newHost(t)
	h.mustSetup("--force", portB)
	if got := h.driver(portB); got != "vfio-pci" {
		t.Errorf("--force: %s has driver %q, want vfio-pci", portB, got)
	}
}

// A driver that does not take the port is reported, and the way back is kept.
func TestHostSetupDriverRefuses(t *testing.T) {
	h := newHost(t)
	h.mustSetup("--dry-run", portA)
	os.Remove(h.path("sys/bus/pci/drivers_probe"))
	h.write("sys/bus/pci/drivers_probe", "")
	if output, ok := h.setup(portA); ok || !strings.Contains(output, "dmesg has the reason") {
		t.Errorf("succeeded: %v, said:\n%s", ok, output)
	}
	if got := h.read("var/lib/weir/host-setup/" + portA); got != "ixgbe\n" {
		t.Errorf("the note on the port's driver is %q, want ixgbe", got)
	}
}
