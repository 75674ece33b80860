// SPDX-License-Identifier: Apache-2.0

package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/pipeline/casetest"
	"weir/pipeline/packettext"
)

// program is a weir binary that is run as nobody in particular: replay, check and version need no
// privileges.
type program struct {
	path    string
	account *syscall.SysProcAttr
	slots   chan struct{} // two at a time
}

// nobody is an unprivileged user and group on every Linux.
const nobody = 65534

// TestProgram builds weir once and runs it: replay, check, version.
func TestProgram(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o022)) // somebody else is to read what is written here
	p := buildProgram(t)
	t.Run("cases", p.testCases)
	t.Run("replay", p.testReplay)
	t.Run("check", p.testCheck)
}

// buildProgram builds weir, as it is where no libdpdk is, into a folder that anybody may read.
func buildProgram(t *testing.T) *program {
	t.Helper()
	p := &program{path: filepath.Join(scratch(t), "weir"), slots: make(chan struct{}, 2)}
	build(t, p.path, "weir/appliance", "CGO_ENABLED=0")
	if os.Geteuid() == 0 {
		p.account = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return p
}

// build builds a package with a version of the tests' own.
func build(t *testing.T, path, name string, env ...string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-ldflags", "-X main.version=v0.0.0-test", "-o", path, name)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", name, err, out)
	}
}

// buildDataplane builds weir-dataplane into a folder that anybody may read, and returns its path.
func buildDataplane(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "weir-dataplane")
	build(t, path, "weir/appliance/weir-dataplane")
	return path
}

// scratch makes a folder that the program, which runs as another user, may write to. (t.TempDir is
// for its maker only.)
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "weir-replay-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// result is how a run of the program ended.
type result struct {
	code           int
	stdout, stderr string
}

func (p *program) run(t *testing.T, args ...string) result {
	t.Helper()
	p.slots <- struct{}{}
	defer func() { <-p.slots }()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(p.path, args...)
	cmd.Dir, cmd.SysProcAttr, cmd.Stdout, cmd.Stderr = "/", p.account, &stdout, &stderr
	cmd.WaitDelay = time.Second
	stop := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer stop.Stop()
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// put writes files to a scratch folder and returns its path.
func put(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := scratch(t)
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const casesDir = "../pipeline/testdata/cases"

// testCases replays every case folder; what the pipeline gave in memory is what must come out.
func (p *program) testCases(t *testing.T) {
	for _, dir := range casetest.Dirs(t, casesDir) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			work, args := caseArgs(t, dir)
			got := p.run(t, append(args, "--json")...)
			if got.code != 0 || got.stderr != "" {
				t.Fatalf("exit %d: %s", got.code, got.stderr)
			}
			if want := string(read(t, filepath.Join(dir, "counters.json"))); got.stdout != want {
				t.Errorf("counters are\n%s\nexpected\n%s", got.stdout, want)
			}
			for _, port := range casetest.Load(t, dir).Config.Ports {
				name := port.Name + ".pcap"
				compare(t, port.Name, read(t, filepath.Join(work, "out", name)), read(t, filepath.Join(dir, "out", name)))
			}
		})
	}
}

// caseArgs copies a case to where the program may read it, and returns the arguments of its replay
// into work/out.
func caseArgs(t *testing.T, dir string) (work string, args []string) {
	t.Helper()
	work = scratch(t)
	if err := os.CopyFS(filepath.Join(work, "case"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(work, "case", name) }
	args = []string{"replay", "--config", in("weir.yaml"), "--out", filepath.Join(work, "out")}
	c := casetest.Load(t, dir)
	for _, port := range c.Config.Ports {
		if file := in(c.In(port.Name)); exists(file) {
			args = append(args, "--in", port.Name+"="+file)
		}
	}
	for _, r := range c.Reloads {
		args = append(args, "--reload", fmt.Sprintf("%g=%s", r.At.Seconds(), in(r.File)))
	}
	return work, args
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// compare compares two captures, packets and times, and shows them as text where they differ.
func compare(t *testing.T, port string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	t.Errorf("port %s sent\n%s\nexpected\n%s", port, listing(t, got), listing(t, want))
}

func listing(t *testing.T, capture []byte) string {
	t.Helper()
	records, err := packettext.ReadPcap(bytes.NewReader(capture))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, r := range records {
		fmt.Fprintf(&b, "%v %s\n", r.Time, packettext.Format(r.Frame))
	}
	return b.String()
}

// capture makes a pcap file of frames.
func capture(t *testing.T, frames ...packettext.Record) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := packettext.WritePcap(&b, frames); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const replayConfig = `version: 1
ports:
  - {name: inside, side: inside, device: net_null0, mac: 02:00:00:00:00:01}
  - {name: outside, side: outside, device: net_null1, mac: 02:00:00:00:00:02, addresses: [198.51.100.2/24], next_hops: [198.51.100.1]}
pools: [{name: p, ranges: [192.0.2.0/24]}]
gateways: [{name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}]
vpcs:
  - name: v
    attach: [{port: inside, addresses: [172.30.0.1/24]}]
    subnets: [172.30.0.0/24]
    routes: [{to: 0.0.0.0/0, gateway: g}]
    instances: [{name: web, addresses: [172.30.0.5], external: {floating: [192.0.2.1]}}]
`

// testReplay is about the command itself: output for people, captures as they come, and everything
// that can be wrong.
func (p *program) testReplay(t *testing.T) {
	frame, err := packettext.Parse("02:00:00:00:00:aa > 02:00:00:00:00:01 udp 172.30.0.5:40000 > 8.8.8.8:53")
	if err != nil {
		t.Fatal(err)
	}
	day := 20000 * 24 * time.Hour // since 1970: captures have real times
	good := capture(t, packettext.Record{Time: day, Frame: frame}, packettext.Record{Time: day + 1500*time.Millisecond, Frame: frame})
	sliced := append([]byte{}, good[24:24+16+20]...) // a record of 20 bytes, of a longer frame
	sliced[8], sliced[9] = 20, 0
	dir := put(t, map[string][]byte{
		"weir.yaml":   []byte(replayConfig),
		"moved.yaml":  []byte(strings.Replace(replayConfig, "[192.0.2.1]", "[192.0.2.2]", 1)),
		"faulty.yaml": []byte(strings.Replace(replayConfig, "gateway: g", "gateway: nowhere", 1)),
		"ports.yaml":  []byte(strings.Replace(replayConfig, "{name: inside", "{name: spare, side: inside, device: net_null2}\n  - {name: inside", 1)),
		"larger.yaml": []byte(strings.Replace(replayConfig, "[192.0.2.1]", "[192.0.2.2]", 1) + "dataplane: {sessions: 4096}\n"),
		"good.pcap":   good,
		"long.pcap":   capture(t, packettext.Record{Frame: frame}, packettext.Record{Frame: append(frame, make([]byte, 65536-len(frame))...)}),
		"empty.pcap":  capture(t),
		"cut.pcap":    good[:len(good)-1],
		"text.pcap":   []byte("no capture\n"),
		"late.pcap":   capture(t, packettext.Record{Time: day + 2*time.Second, Frame: frame}, packettext.Record{Time: day + time.Second, Frame: frame}),
		"sliced.pcap": append(append([]byte{}, good...), sliced...),
		"file":        nil,
	})
	at := func(name string) string { return filepath.Join(dir, name) }
	config, in, out := "--config="+at("weir.yaml"), "--in=inside="+at("good.pcap"), "--out="+at("out")

	for _, c := range []struct {
		name   string
		args   []string
		code   int
		stdout string // regular expressions
		stderr string
	}{
		{"plain output", []string{config, in, "--out=" + at("plain")}, 0,
			`(?m)^received +2\nforwarded +2\npunted +0\noriginated +0\nfragmented +0\nheld +0\nport inside +received 2 +transmitted 0 +\S+/inside.pcap\nport outside +received 0 +transmitted 2 +\S+/outside.pcap\n$`, `^$`},
		{"drops with their help", []string{config, "--in=outside=" + at("good.pcap"), "--out=" + at("drops")}, 0,
			`dropped martian +2 +an address that must not appear on this wire\n`, `^$`},
		{"no captures", []string{config, "--out=" + at("none")}, 0, `^received +0\n`, `^$`},
		{"a capture without frames", []string{config, "--in=inside=" + at("empty.pcap"), "--out=" + at("none")}, 0, `^received +0\n`, `^$`},

		{"sliced frames are left out", []string{config, "--in=inside=" + at("sliced.pcap"), "--out=" + at("sliced")}, 0,
			`(?s)^received +2\n.*\nport inside +skipped 1 +the capture holds only a part of them.*\n$`, `^$`},
		{"sliced frames in JSON", []string{config, "--in=inside=" + at("sliced.pcap"), "--out=" + at("slicedjson"), "--json"}, 0,
			`(?s)"received": 2,.*"skipped": \{\s+"inside": \{\s+"sliced": 1\s+\}\s+\}\s+\}\n$`, `^$`},
		{"each frame", []string{config, in, "--in=outside=" + at("late.pcap"), "--out=" + at("verbose"), "--verbose"}, 0,
			`(?s)^1 \+0\.000000 inside < \S+ > \S+ udp 172.30.0.5:40000 > 8.8.8.8:53\n    outside > \S+ > \S+ udp 192.0.2.1:40000 > 8.8.8.8:53 ttl=63\n` +
				`2 \+1\.000000 outside < [^\n]*\n    dropped martian: an address that must not appear on this wire\n` +
				`3 \+1\.500000 inside < .*4 \+2\.000000 outside < .*received +4\n`, `^$`},
		{"each frame and JSON", []string{config, in, out, "--json", "--verbose"}, 2, `^$`, `json verbose`},

		{"a path that device arguments could not hold", []string{config, in, "--out=" + at("a,b=[c]")}, 0, `(?m)transmitted 2 +\S+/a,b=\[c\]/outside.pcap$`, `^$`},

		{"no config", []string{in, out}, 2, `^$`, `required flag.*"config"`},
		{"no out", []string{config, in}, 2, `^$`, `required flag.*"out"`},
		{"an argument", []string{config, in, out, "more"}, 2, `^$`, `unknown command "more"`},
		{"an unknown flag", []string{config, in, out, "--fast"}, 2, `^$`, `unknown flag: --fast`},
		{"--in without a file", []string{config, "--in=inside", out}, 2, `^$`, `--in "inside": expected PORT=FILE`},
		{"--in without a port", []string{config, "--in==x.pcap", out}, 2, `^$`, `--in "=x.pcap": expected PORT=FILE`},
		{"--in twice", []string{config, in, in, out}, 2, `^$`, `the port already has a file`},
		{"--reload without a time", []string{config, in, out, "--reload=" + at("moved.yaml")}, 2, `^$`, `--reload ".*": expected SECONDS=PATH`},
		{"--reload in the past", []string{config, in, out, "--reload=-1=x"}, 2, `^$`, `expected SECONDS=PATH`},

		{"an unknown port", []string{config, "--in=middle=" + at("good.pcap"), out}, 1, `^$`, `--in middle: the configuration has no port with this name`},
		{"no such config", []string{"--config=" + at("none.yaml"), in, out}, 1, `^$`, `none.yaml: cannot be read: no such file`},
		{"a faulty config", []string{"--config=" + at("faulty.yaml"), in, out}, 1, `^$`, `faulty.yaml:\d+: .*no gateway is named "nowhere"`},
		{"no such capture", []string{config, "--in=inside=" + at("none.pcap"), out}, 1, `^$`, `none.pcap: no such file`},
		{"no capture at all", []string{config, "--in=inside=" + at("text.pcap"), out}, 1, `^$`, `text.pcap: pcap header: .* expected a pcap or pcapng file`},
		{"a capture that ends inside a frame", []string{config, "--in=inside=" + at("cut.pcap"), out}, 1, `^$`, `cut.pcap: pcap record 2`},
		{"a frame that no device delivers", []string{config, "--in=inside=" + at("long.pcap"), out}, 1, `^$`, `long.pcap: frame 2 has 65536 bytes; expected at most 65535`},
		{"an out that is a file", []string{config, in, "--out=" + at("file")}, 1, `^$`, `file: not a directory`},
		{"a reload with faults", []string{config, in, out, "--reload=1=" + at("faulty.yaml")}, 1, `^$`, `no gateway is named "nowhere"`},
		{"a reload with another port", []string{config, in, out, "--reload=1=" + at("ports.yaml")}, 1, `^$`, `ports.yaml: .*spare.* needs a restart`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := p.run(t, append([]string{"replay"}, c.args...)...)
			if got.code != c.code || !regexp.MustCompile(c.stdout).MatchString(got.stdout) || !regexp.MustCompile(c.stderr).MatchString(got.stderr) {
				t.Errorf("weir replay %s\nexit %d, expected %d\nstdout %q\nexpected %s\nstderr %q\nexpected %s",
					strings.Join(c.args, " "), got.code, c.code, got.stdout, c.stdout, got.stderr, c.stderr)
			}
		})
	}

	// Seconds count from the first frame, and what takes a restart leaves the rest of the reload in
	// force.
	for _, file := range []string{"moved.yaml", "larger.yaml"} {
		for _, c := range []struct {
			seconds, second string // what the second frame leaves by
		}{{"1.5", "192.0.2.2"}, {"1.501", "192.0.2.1"}} {
			t.Run("reload at "+c.seconds+" of "+file, func(t *testing.T) {
				t.Parallel()
				out := filepath.Join(scratch(t), "out")
				got := p.run(t, "replay", config, in, "--out="+out, "--reload="+c.seconds+"="+at(file))
				if got.code != 0 || got.stderr != "" {
					t.Fatalf("exit %d: %s", got.code, got.stderr)
				}
				want := ""
				for i, source := range []string{"192.0.2.1", c.second} {
					want += fmt.Sprintf("%v 02:00:00:00:00:02 > 02:77:65:69:72:00 udp %s:40000 > 8.8.8.8:53 ttl=63\n", day+time.Duration(i)*1500*time.Millisecond, source)
				}
				if sent := listing(t, read(t, filepath.Join(out, "outside.pcap"))); sent != want {
					t.Errorf("sent\n%s\nexpected\n%s", sent, want)
				}
			})
		}
	}
}

// testCheck is about weir check and weir version.
func (p *program) testCheck(t *testing.T) {
	dir := put(t, map[string][]byte{
		"good.yaml":     []byte(replayConfig),
		"faulty.yaml":   []byte(strings.NewReplacer("gateway: g", "gateway: nowhere", "pools: [p]", "pools: [q]").Replace(replayConfig)),
		"warned.yaml":   []byte(strings.Replace(replayConfig, "pools: [p]", "addresses: [192.0.2.7]", 1)),
		"parts/1.yaml":  []byte(replayConfig),
		"moved.yaml":    []byte(strings.Replace(replayConfig, "[192.0.2.1]", "[192.0.2.2]", 1)),
		"renamed.yaml":  []byte(strings.Replace(replayConfig, "name: outside", "name: uplink", 1)),
		"sessions.yaml": []byte(replayConfig + "dataplane: {sessions: 4096}\n"),
		"more.yaml":     []byte(replayConfig + "instances: [{vpc: v, name: db, addresses: [172.30.0.6]}, {vpc: v, name: dc, addresses: [172.30.0.7]}]\n"),
		"parts/2.yaml":  []byte("version: 1\ninstances: [{vpc: v, name: db, addresses: [172.30.0.6]}]\n"),
	})
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, c := range []struct {
		name   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"good", []string{"check", at("good.yaml")}, 0, `^\S+good.yaml: good: 2 ports, 1 pools, 1 gateways, 1 VPCs, 1 instances\n$`, `^$`},
		{"good and strict", []string{"check", "--strict", at("good.yaml")}, 0, `: good: `, `^$`},
		{"a directory", []string{"check", at("parts")}, 0, `1 VPCs, 2 instances\n$`, `^$`},
		{"all faults", []string{"check", at("faulty.yaml")}, 1, `(?s)^fault: \S+faulty.yaml:6: .*"q".*\nfault: \S+faulty.yaml:11: .*no gateway is named "nowhere".*\n$`, `^$`},
		{"warnings", []string{"check", at("warned.yaml")}, 0, `(?s)^warning: \S+warned.yaml:12: .*192.0.2.1 is in no gateway.* \[address-without-gateway:v/web\]\n.*: good: `, `^$`},
		{"warnings and strict", []string{"check", "--strict", at("warned.yaml")}, 1, `(?m)^warning: `, `^$`},
		{"against the same", []string{"check", at("good.yaml"), "--against", at("good.yaml")}, 0, `(?s): good: .*\nthe meaning does not change`, `^$`},
		{"against what a reload takes over", []string{"check", at("moved.yaml"), "--against", at("good.yaml")}, 0, `(?s): good: .*\nchange: instance "web" of vpc "v" changed\n$`, `^$`},
		{"against more than max_shrink leaves", []string{"check", at("good.yaml"), "--against", at("more.yaml")}, 1,
			`(?s)^fault: \S+good.yaml: a reload of \S+more.yaml would refuse this: the change removes 66 % of the .* \(50 %\).*\nchange: instance`, `^$`},
		{"against another port name", []string{"check", at("renamed.yaml"), "--against", at("good.yaml")}, 1, `(?s)^fault: .*"uplink" added.*needs a restart of weir; nothing was applied\n.*restart needed: port "uplink" added\n$`, `^$`},
		{"against another size", []string{"check", at("sessions.yaml"), "--against", at("good.yaml")}, 1, `^fault: .*dataplane.sessions\] changed, which needs a restart of weir; the rest was applied\n`, `^$`},
		{"against and JSON", []string{"check", "--json", at("sessions.yaml"), "--against", at("good.yaml")}, 1, `(?s)"ok": false,.*"message": "a reload of .*"refused": `, `^$`},
		{"no such file", []string{"check", at("none.yaml")}, 1, `^fault: \S+none.yaml: cannot be read: no such file`, `^$`},
		{"no path", []string{"check"}, 2, `^$`, `accepts 1 arg`},
		{"two paths", []string{"check", "a", "b"}, 2, `^$`, `accepts 1 arg`},
		{"version", []string{"version"}, 0, `^weir v0.0.0-test.* linux/` + runtime.GOARCH + ` ` + regexp.QuoteMeta(runtime.Version()) + `\n$`, `^$`},
		{"version of what", []string{"version", "x"}, 2, `^$`, `unknown command "x"`},
		{"no such command", []string{"rerun"}, 2, `^$`, `unknown command "rerun"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := p.run(t, c.args...)
			if got.code != c.code || !regexp.MustCompile(c.stdout).MatchString(got.stdout) || !regexp.MustCompile(c.stderr).MatchString(got.stderr) {
				t.Errorf("weir %s\nexit %d, expected %d\nstdout %q\nexpected %s\nstderr %q\nexpected %s",
					strings.Join(c.args, " "), got.code, c.code, got.stdout, c.stdout, got.stderr, c.stderr)
			}
		})
	}

	type finding struct {
		File    string `json:"file"`
		Line    int    `json:"line"`
		Message string `json:"message"`
	}
	for _, c := range []struct {
		file             string
		code             int
		ok               bool
		faults, warnings []int // their lines
	}{
		{"good.yaml", 0, true, nil, nil},
		{"faulty.yaml", 1, false, []int{6, 11}, nil},
		{"warned.yaml", 0, true, nil, []int{12, 12}},
	} {
		t.Run("JSON of "+c.file, func(t *testing.T) {
			t.Parallel()
			got := p.run(t, "check", "--json", at(c.file))
			var report struct {
				OK               bool `json:"ok"`
				Faults, Warnings []finding
			}
			d := json.NewDecoder(strings.NewReader(got.stdout))
			if err := d.Decode(&report); err != nil || d.More() || got.code != c.code || got.stderr != "" {
				t.Fatalf("exit %d, %v: %s%s", got.code, err, got.stdout, got.stderr)
			}
			if report.Faults == nil || report.Warnings == nil {
				t.Errorf("an absent list, expected empty ones: %s", got.stdout)
			}
			same := func(list []finding, lines []int) bool {
				ok := len(list) == len(lines)
				for i, f := range list {
					ok = ok && f.File == at(c.file) && f.Line == lines[i] && f.Message != ""
				}
				return ok
			}
			if report.OK != c.ok || !same(report.Faults, c.faults) || !same(report.Warnings, c.warnings) {
				t.Errorf("%s\nexpected ok %v, faults at lines %v, warnings at %v", got.stdout, c.ok, c.faults, c.warnings)
			}
		})
	}
}
