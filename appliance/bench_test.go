// SPDX-License-Identifier: Apache-2.0

package main_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// benchResult is what users of weir bench --json may rely on.
type benchResult struct {
	Name            *string
	Sessions        *int
	Frame           *float64
	Burst           *int
	Workers         *int
	NanosPerPacket  *float64 `json:"ns_per_packet"`
	CyclesPerPacket *float64 `json:"cycles_per_packet"`
	Mpps            *float64

	Packets, Forwarded uint64
	Dropped            map[string]uint64
	Allocations        float64            `json:"allocations_per_packet"`
	Stages             map[string]float64 `json:"stage_ns_per_packet"`
	BytesPerSession    float64            `json:"bytes_per_session"`
	SessionsPerSecond  float64            `json:"sessions_per_second"`
}

// bench runs weir bench as somebody without privileges.
func bench(t *testing.T, p *program, args ...string) []benchResult {
	t.Helper()
	cmd := exec.Command(p.path, append([]string{"bench", "--json"}, args...)...)
	cmd.SysProcAttr = p.account
	cmd.Env = []string{"TMPDIR=" + scratch(t)}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, &stderr)
	}
	var results []benchResult
	if err := json.Unmarshal(out, &results); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return results
}

// weir finds weir-dataplane beside itself, else in PATH, and says where it looked if it is in
// neither; its flags and exit codes are the other program's.
func TestDataplaneProgram(t *testing.T) {
	p := buildProgram(t)
	elsewhere := scratch(t)
	dataplane := buildDataplane(t, elsewhere)
	for _, c := range []struct {
		name   string
		path   string // PATH
		beside bool
		args   []string
		code   int
		stdout string // regular expressions
		stderr string
	}{
		{"its version", "", false, []string{dataplane, "version"}, 0, `^weir-dataplane v0.0.0-test.* linux/`, `^$`},
		{"bench without it", "/", false, []string{p.path, "bench", "--help"}, 1, `^$`, `^weir: there is no program \S+/weir-dataplane, and none of this name in PATH: install it beside weir\n$`},
		{"run without it", "/", false, []string{p.path, "run", "--config", "CONFIG", "--socket", filepath.Join(elsewhere, "s")}, 1, `^$`, `cannot start the data plane: there is no program \S+/weir-dataplane`},
		{"in PATH", elsewhere, false, []string{p.path, "bench", "--help"}, 0, `weir-dataplane bench \[flags\]`, `^$`},
		{"beside", "/", true, []string{p.path, "bench", "--help"}, 0, `weir-dataplane bench \[flags\]`, `^$`},
		{"a flag that it does not know", "/", true, []string{p.path, "bench", "--fast"}, 2, `^$`, `^weir-dataplane: unknown flag: --fast\n`},
		{"an argument", "/", true, []string{dataplane, "bench", "x"}, 2, `^$`, `^weir-dataplane: unknown command "x"`},
	} {
		if beside := filepath.Join(filepath.Dir(p.path), "weir-dataplane"); c.beside && !exists(beside) {
			if err := os.Link(dataplane, beside); err != nil {
				t.Fatal(err)
			}
		}
		if i := slices.Index(c.args, "CONFIG"); i >= 0 {
			c.args[i] = filepath.Join(put(t, map[string][]byte{"weir.yaml": []byte(replayConfig)}), "weir.yaml")
		}
		var stdout, stderr strings.Builder
		cmd := exec.Command(c.args[0], c.args[1:]...)
		cmd.SysProcAttr, cmd.Env, cmd.Stdout, cmd.Stderr = p.account, []string{"PATH=" + c.path}, &stdout, &stderr
		cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !regexp.MustCompile(c.stdout).MatchString(stdout.String()) || !regexp.MustCompile(c.stderr).MatchString(stderr.String()) {
			t.Errorf("%s: %s\nexit %d, expected %d\nstdout %q\nexpected %s\nstderr %q\nexpected %s",
				c.name, strings.Join(c.args, " "), code, c.code, &stdout, c.stdout, &stderr, c.stderr)
		}
	}
}

// Every scenario, in every size that takes little time: the fields are there, every packet meets
// its fate (weir bench itself fails when one does not), nothing is allocated for it.
func TestBench(t *testing.T) {
	p := buildProgram(t)
	buildDataplane(t, filepath.Dir(p.path))
	results := bench(t, p, "--time", "1ms", "--sessions", "16384")
	results = append(results, bench(t, p, "--time", "1ms", "--sessions", "1024", "--burst", "8,32,64", "--frame", "64,imix,1500", "--scenario", "established|fragments|unknown")...)
	results = append(results, bench(t, p, "--time", "1ms", "--sessions", "32768", "--workers", "2", "--scenario", "mixed|new/floating|snat-50|handoff", "--runs", "2")...)

	var names []string
	for _, r := range results {
		if r.Name == nil || r.Sessions == nil || r.Frame == nil || r.Burst == nil || r.Workers == nil || r.NanosPerPacket == nil || r.CyclesPerPacket == nil || r.Mpps == nil {
			t.Fatalf("a field that is promised is missing: %+v", r)
		}
		names = append(names, *r.Name)
		if *r.NanosPerPacket <= 0 || *r.CyclesPerPacket <= 0 || *r.Mpps <= 0 || r.Packets == 0 || len(r.Stages) == 0 || r.BytesPerSession <= 0 {
			t.Errorf("%s: not measured: %+v", *r.Name, r)
		}
		switch name := *r.Name; {
		case strings.HasPrefix(name, "handoff/"), name == "new/snat-99/v4":
		case name == "unknown/snat/v4/in":
			if r.Dropped["unsolicited"]+r.Dropped["filtered"] != r.Packets {
				t.Errorf("%s: of %d packets dropped: %v", name, r.Packets, r.Dropped)
			}
		default:
			if r.Forwarded != r.Packets || len(r.Dropped) != 0 {
				t.Errorf("%s: of %d packets %d were forwarded, dropped: %v", name, r.Packets, r.Forwarded, r.Dropped)
			}
		}
		if begins := strings.HasPrefix(*r.Name, "new/"); begins != (r.SessionsPerSecond > 0) {
			t.Errorf("%s: %v sessions a second", *r.Name, r.SessionsPerSecond)
		}
		// What a measurement itself allocates is a few objects; a burst of the pipeline allocates
		// none.
		if perBurst := r.Allocations * float64(*r.Burst); perBurst > 0.1 && r.Allocations*float64(r.Packets) > 30 {
			t.Errorf("%s: %v allocations a burst", *r.Name, perBurst)
		}
	}
	slices.Sort(names)
	for _, want := range []string{
		"established/floating/v4/out", "established/floating/v6/in", "established/snat/v4/out", "established/snat/v6/in", "established/snat-tcp/v4/in",
		"established/mixed", "new/floating/v4", "new/snat/v6", "new/snat-50/v4", "new/snat-99/v4", "unknown/snat/v4/in", "fragments/floating/v4/out", "handoff/snat/v4/out",
	} {
		if _, found := slices.BinarySearch(names, want); !found {
			t.Errorf("no result for %s", want)
		}
	}
}

// With devices: the worker as it is between two, a generator beside it; only a queue that the
// generator does not empty may cost a packet, which weir bench checks itself.
func TestBenchDevices(t *testing.T) {
	p := buildProgram(t)
	buildDataplane(t, filepath.Dir(p.path))
	names := map[string]bool{}
	for _, r := range bench(t, p, "--devices", "--time", "10ms", "--sessions", "1024", "--scenario", "^(ring|memif/weir|latency/weir|idle/(busy|sleep/200-8-20us-700us))") {
		names[*r.Name] = true
		if *r.Mpps <= 0 || r.Forwarded == 0 || r.Forwarded > r.Packets {
			t.Errorf("%s: of %d packets %d came back", *r.Name, r.Packets, r.Forwarded)
		}
	}
	for _, want := range []string{"ring/weir", "ring/forward", "memif/weir", "latency/weir/50", "idle/busy", "idle/sleep/200-8-20us-700us"} {
		if !names[want] {
			t.Errorf("no result for %s", want)
		}
	}
}
