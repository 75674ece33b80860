// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"cmp"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"weir/appliance/control"
)

// show runs weir show and returns its lines, the fields of each.
func (w *weir) show(t *testing.T, args ...string) (lines [][]string) {
	t.Helper()
	args = append([]string{"show", "--api", filepath.Join(w.dir, "run", "api.sock")}, args...)
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("weir %v: %v\n%s", args, err, out)
	}
	for line := range strings.Lines(string(out)) {
		lines = append(lines, strings.Fields(line))
	}
	return lines
}

// expectRow fails the test unless one line has a field for each pattern, in their order.
func expectRow(t *testing.T, what string, lines [][]string, patterns ...string) {
	t.Helper()
	fits := func(line []string) bool {
		for i, p := range patterns {
			if i >= len(line) || !regexp.MustCompile("^("+p+")$").MatchString(line[i]) {
				return false
			}
		}
		return true
	}
	if slices.ContainsFunc(lines, fits) {
		return
	}
	t.Errorf("%s: no line is %v: %v", what, patterns, lines)
}

// What weir show says is what is there.
func TestShow(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4, remote6)
	w := newWeir(t, n, "")
	w.write(t, replace(t, baseConfig, `socket: ""`, "socket: "+filepath.Join(w.dir, "run", "api.sock")))
	w.run(t)
	w.ready(t)
	streams := []*stream{
		startFlowing(t, n.guest, web4, remote4), startFlowing(t, n.guest, web6, remote6),
		startFlowing(t, n.guest, batch4, remote4), startFlowing(t, n.guest, batch6, remote6),
	}

	sessions := w.show(t, "sessions")
	expectRow(t, "titles", sessions, "VPC", "INSTANCE", "PROTO", "PRIVATE", "EXTERNAL", "REMOTE", "GATEWAY", "STATE", "AGE", "IDLE", "LEFT", "WORKER")
	expectRow(t, "1:1", sessions, "blue", "web", "udp", `172\.30\.0\.5:\d+`, `192\.0\.2\.5:\d+`, `203\.0\.113\.1:\d+`, "default", "udp", `.*s`, `.*s`, `(4m\d+|5m0)s`, "0")
	expectRow(t, "SNAT", sessions, "blue", "batch", "udp", `\[fd00:1::7\]:\d+`, `\[2001:db8:1::e\]:\d+`, `\[2001:db8:f::1\]:\d+`, "default", "udp")
	if len(sessions) != 5 {
		t.Errorf("%d lines, expected four sessions: %v", len(sessions), sessions)
	}
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"--instance", "batch"}, 2}, {[]string{"--address", "172.30.0.0/24"}, 2}, {[]string{"--address", "192.0.2.14"}, 1}, {[]string{"--remote", "2001:db8:f::1"}, 2},
		{[]string{"--vpc", "blue", "--protocol", "udp", "--gateway", "default", "--state", "udp"}, 4}, {[]string{"--protocol", "tcp"}, 0}, {[]string{"--port", "9999"}, 0},
	} {
		if got := w.show(t, append([]string{"sessions"}, c.args...)...); len(got) != 1+c.want {
			t.Errorf("%v: %v, expected %d sessions", c.args, got, c.want)
		}
	}
	if got := w.show(t, "sessions", "--limit", "3"); len(got) != 5 || got[4][0] != "there" {
		t.Errorf("--limit 3: %v", got)
	}
	// Page by page, one session a page, it is the same four.
	seen := map[string]bool{}
	for after := ""; ; {
		var page control.Page[control.Session]
		if err := control.Ask(t.Context(), filepath.Join(w.dir, "run", "api.sock"), "/api/v1/sessions?limit=1&after="+cmp.Or(after, "0"), nil, &page); err != nil {
			t.Fatal(err)
		}
		for _, s := range page.Items {
			seen[s.Private] = true
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if len(seen) != 4 {
		t.Errorf("page by page: %v", seen)
	}

	expectRow(t, "snat", w.show(t, "snat", "--address", "192.0.2.14"), "blue", "batch", `192\.0\.2\.14`, "1024-17407", "16384", "0", "1", "0", "0", "16384", "16383")
	expectRow(t, "neighbors", w.show(t, "neighbors", "--address", "172.30.0.5"), "inside", "-", `172\.30\.0\.5`, "([0-9a-f]{2}:){5}[0-9a-f]{2}", "reachable")
	expectRow(t, "next-hops", w.show(t, "next-hops"), "outside", `198\.51\.100\.1`, "up")
	expectRow(t, "ports", w.show(t, "ports"), "outside", "outside", "up", `\d+`, `[1-9]\d*`, `[1-9]\d*`, "0", "0", "0")
	expectRow(t, "workers", w.show(t, "workers"), "0", "1", "4", "8192", "false", `\d+\.\d`, `\d+`, `\d+`, "0", "1", `\d+ms`)
	expectRow(t, "generation", w.show(t, "generation"), "1", "true", "up", "0", "good", "1", "2", "1", "1", regexp.QuoteMeta(w.config))
	expectRow(t, "drops", w.show(t, "drops"), "PACKETS", "CLASS", "REASON", "WHAT")

	out, err := exec.Command(program, "show", "snat", "--json", "--api", filepath.Join(w.dir, "run", "api.sock")).Output()
	var page control.Page[control.Share]
	if err == nil {
		err = json.Unmarshal(out, &page)
	}
	if err != nil || len(page.Items) != 2 || page.Items[0].UDP.InUse != 1 {
		t.Errorf("--json: %v\n%s", err, out)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"sessions", "--vpc", "red"}, `there is no VPC "red"`},
		{[]string{"sessions", "--port", "x"}, `port "x": expected 0 to 65535`},
		{[]string{"workers", "--vpc", "blue"}, `workers have no filter "vpc"`},
		{[]string{"everything"}, `invalid argument "everything"`},
	} {
		args := append([]string{"show", "--api", filepath.Join(w.dir, "run", "api.sock")}, c.args...)
		if out, err := exec.Command(program, args...).CombinedOutput(); err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%v: %v %s, expected %q", c.args, err, out, c.want)
		}
	}
	endAll(streams)
	w.stop(t)
}
