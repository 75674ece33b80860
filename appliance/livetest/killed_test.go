// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// marked lists the processes of the run that has text in its environment, with their command lines.
func marked(t *testing.T, text string) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, path := range paths {
		if b, _ := os.ReadFile(path); bytes.Contains(b, []byte(text)) {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			found[strings.Split(path, "/")[2]] = strings.ReplaceAll(string(line), "\x00", " ")
		}
	}
	return found
}

// A run of these tests is killed by SIGKILL while weir runs: control, data plane and namespaces end
// with it, though a data plane outlives its control.
func TestKilledRun(t *testing.T) {
	mark := fmt.Sprintf("WEIR_LIVE_TEST_MARK=%d", time.Now().UnixNano())
	run := exec.Command(os.Args[0], "-test.run", "^TestReloadUnderTraffic$")
	run.Env = append(os.Environ(), mark)
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run.Process.Kill() })
	namespaces := map[string]bool{}
	mine, err := os.Readlink("/proc/thread-self/ns/net") // the main thread may have been left in another namespace
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Minute, "weir runs", func() error { // the program is built first
		control, plane := 0, 0
		for pid, line := range marked(t, mark) {
			switch {
			case strings.Contains(line, "weir run "):
				control++
			case strings.Contains(line, "weir-dataplane "):
				plane++
			default:
				continue
			}
			if ns, _ := os.Readlink(filepath.Join("/proc", pid, "ns/net")); ns != mine {
				namespaces[ns] = true
			}
		}
		if control != 1 || plane != 1 || len(namespaces) == 0 {
			return fmt.Errorf("%d controls, %d data planes, in namespaces %v", control, plane, namespaces)
		}
		return nil
	})
	if err := run.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	run.Wait()
	eventually(t, patience, "all that the run has started ends", func() error {
		if left := marked(t, mark); len(left) > 0 {
			return fmt.Errorf("processes %v live", left)
		}
		links, err := filepath.Glob("/proc/[0-9]*/ns/net")
		if err != nil {
			return err
		}
		for _, link := range links {
			if ns, _ := os.Readlink(link); namespaces[ns] {
				return fmt.Errorf("%s is in a namespace of the run", link)
			}
		}
		return nil
	})
}
