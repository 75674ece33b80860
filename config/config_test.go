// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A testCase is a configuration of one or more files. Expectations are comments on the lines they
// are about:
//
//	# want: PATH: MESSAGE    a fault
//	# warn: PATH: MESSAGE    a warning
type testCase struct {
	name  string
	files []File
}

var caseHeader = regexp.MustCompile(`(?m)^-- (\S+?)(?:/(\S+))? --\n`)

// readCases splits an archive at its headers: "-- case --", or "-- case/file.yaml --" for each of
// several files.
func readCases(t testing.TB, archive string) []testCase {
	t.Helper()
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	var cases []testCase
	headers := caseHeader.FindAllSubmatchIndex(data, -1)
	for i, h := range headers {
		end := len(data)
		if i+1 < len(headers) {
			end = headers[i+1][0]
		}
		name, file := string(data[h[2]:h[3]]), "weir.yaml"
		if h[4] >= 0 {
			file = string(data[h[4]:h[5]])
		}
		if n := len(cases); n == 0 || cases[n-1].name != name {
			cases = append(cases, testCase{name: name})
		}
		c := &cases[len(cases)-1]
		c.files = append(c.files, File{file, data[h[1]:end]})
	}
	return cases
}

var expectation = regexp.MustCompile(`# (want|warn): `)

// expected returns the lines that the comments of a case ask for.
func (c testCase) expected(kind string) []string {
	var all []string
	for _, f := range c.files {
		for i, line := range strings.Split(string(f.Data), "\n") {
			marks := expectation.FindAllStringSubmatchIndex(line, -1)
			for j, m := range marks {
				end := len(line)
				if j+1 < len(marks) {
					end = marks[j+1][0]
				}
				if line[m[2]:m[3]] == kind {
					all = append(all, fmt.Sprintf("%s:%d: %s", f.Name, i+1, strings.TrimSpace(line[m[1]:end])))
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

func lines(faults []Fault) []string {
	var all []string
	for _, f := range faults {
		all = append(all, f.String())
	}
	slices.Sort(all)
	return all
}

// archives returns the archives of cases in testdata.
func archives(t testing.TB) []string {
	t.Helper()
	names, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(names) == 0 {
		t.Fatalf("no archives in testdata (%v)", err)
	}
	return names
}

func TestCases(t *testing.T) {
	bad := 0
	for _, archive := range archives(t) {
		t.Run(strings.TrimSuffix(filepath.Base(archive), ".txt"), func(t *testing.T) {
			for _, c := range readCases(t, archive) {
				t.Run(c.name, func(t *testing.T) {
					config, warnings, err := Parse(c.files)
					var faults Faults
					if err != nil && !errors.As(err, &faults) {
						t.Fatalf("the error is a %T, not Faults", err)
					}
					if (config == nil) != (err != nil) {
						t.Fatalf("config %v with error %v", config, err)
					}
					if diff := cmp.Diff(c.expected("want"), lines(faults)); diff != "" {
						t.Errorf("faults (-want +got):\n%s", diff)
					}
					if diff := cmp.Diff(c.expected("warn"), lines(warnings)); diff != "" {
						t.Errorf("warnings (-want +got):\n%s", diff)
					}
					if err != nil {
						bad++
						return
					}
					checkGuarantees(t, config)
				})
			}
		})
	}
	if bad < 60 {
		t.Errorf("%d bad configurations; expected at least 60", bad)
	}
}

// Texts whose fault cannot be marked by a comment in it.
func TestBadText(t *testing.T) {
	deep := func(open string) string { return "version: 1\nports: " + strings.Repeat(open, 10001) }
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "f.yaml:1: the file is empty; expected one YAML document"},
		{"comment only", "# nothing\n", "f.yaml:1: the file is empty; expected one YAML document"},
		{"null document", "---\n", "f.yaml:2: the file holds nothing; expected a mapping that begins with version: 1"},
		{"list", "- version: 1\n", "f.yaml:1: the file holds a list; expected a mapping that begins with version: 1"},
		{"text", "weir\n", "f.yaml:1: the file holds text; expected a mapping that begins with version: 1"},
		{"anchored", "&all {version: 1}\n", "f.yaml:1: the anchor &all is not accepted; expected the value alone"},
		{"no version", "ports: []\nversion: 1\n", "f.yaml:1: the file does not begin with a version; expected version: 1 as its first key"},
		{"empty mapping", "{}\n", "f.yaml:1: the file does not begin with a version; expected version: 1 as its first key"},
		{"newer", "version: 2\nanything: &a [*a]\n", "f.yaml:1: version: \"2\" is not a version that this program reads; expected 1"},
		{"version as text", "version: \"1\"\n", "f.yaml:1: version: \"1\" is not a version that this program reads; expected 1"},
		{"version as list", "version: [1]\n", "f.yaml:1: version: a list is not a version that this program reads; expected 1"},
		{"version octal", "version: 0o1\n", "f.yaml:1: version: \"0o1\" is not a version that this program reads; expected 1"},
		{"bomb", "version: 1\nports: &a [x,x,x,x,x,x,x,x,x]\npools: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\ngateways: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nvpcs: *c\n",
			"f.yaml:2: ports: the anchor &a is not accepted; expected the value alone\n" +
				"f.yaml:3: pools: the anchor &b is not accepted; expected the value alone\n" +
				"f.yaml:4: gateways: the anchor &c is not accepted; expected the value alone\n" +
				"f.yaml:5: vpcs: the alias *c is not accepted; expected the value itself"},
		{"two documents", "version: 1\n---\nversion: 1\n", "f.yaml:2: a second document begins; expected one YAML document"},
		{"NUL", "version: 1\nports: []\x00\n", "f.yaml:2: byte 0x00 is not text; expected UTF-8"},
		{"binary", "\x7fELF\x02\x01\x01\x00", "f.yaml:1: byte 0x00 is not text; expected UTF-8"},
		{"latin-1", "version: 1\n\nports: [{name: caf\xe9}]\n", "f.yaml:3: byte 0xe9 is not text; expected UTF-8"},
		{"UTF-16", "\xff\xfev\x00e\x00", "f.yaml:1: byte 0xff is not text; expected UTF-8"},
		{"tab", "version: 1\nports:\n\t- name: a\n", "f.yaml:3: found character that cannot start any token; expected one YAML document"},
		{"unclosed", "version: 1\nports: [\n", "f.yaml:2: did not find expected node content; expected one YAML document"},
		{"deep lists", deep("["), "f.yaml:2: exceeded max depth of 10000; expected one YAML document"},
		{"deep mappings", deep("{a: "), "f.yaml:2: exceeded max depth of 10000; expected one YAML document"},
		{"too large", "version: 1\n#" + strings.Repeat("x", MaxFileSize), "f.yaml: cannot be read: it is larger than 16 MiB; expected it split into a directory of files"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := Parse([]File{{"f.yaml", []byte(c.text)}})
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %v", err, c.want)
			}
		})
	}
	if _, _, err := Parse(nil); err == nil {
		t.Error("no files at all are accepted")
	}
}

func TestGoodText(t *testing.T) {
	plain := "version: 1\nlog: {level: warn}\n"
	want, _, err := Parse([]File{{"f.yaml", []byte(plain)}})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"byte order mark": "\xef\xbb\xbf" + plain,
		"CRLF":            strings.ReplaceAll(plain, "\n", "\r\n"),
		"no last newline": strings.TrimSuffix(plain, "\n"),
		"document marks":  "---\n" + plain + "...\n",
	} {
		got, _, err := Parse([]File{{"f.yaml", []byte(text)}})
		if err != nil || !Equal(got, want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// A file of nothing but faults gives a report of bounded size.
func TestManyFaults(t *testing.T) {
	text := "version: 1\nports: [" + strings.Repeat("a,", 100000) + "]\n"
	_, _, err := Parse([]File{{"f.yaml", []byte(text)}})
	faults, _ := err.(Faults)
	if len(faults) != maxFaults+1 || faults[maxFaults].Message != "there are more; only these 10000 are listed" {
		t.Errorf("%d faults, last %v", len(faults), faults[len(faults)-1])
	}
}

func load(t testing.TB, path string) *Config {
	t.Helper()
	c, warnings, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		t.Errorf("warning: %v", w)
	}
	return c
}

func TestExample(t *testing.T) {
	p, a, mac := netip.MustParsePrefix, netip.MustParseAddr, func(s string) MAC {
		m, err := parseMAC(s)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	id := func(last byte) ID { return ID{6: 0x40, 8: 0x80, 15: last} }
	want := DefaultConfig
	want.Ports = []Port{
		{Name: "inside", Device: "net_af_packet0,iface=veth-in,framecnt=8192", Side: Inside, MTU: 1500, MAC: mac("02:00:00:00:00:01")},
		{Name: "outside", Device: "0000:3b:00.1", Side: Outside, MTU: 1500,
			Addresses: []netip.Prefix{p("198.51.100.2/24"), p("2001:db8::2/64")},
			NextHops:  []NextHop{{Address: a("198.51.100.1")}, {a("2001:db8::1"), mac("02:00:00:00:01:01")}}},
	}
	want.Pools = []Pool{
		{Name: "old", Ranges: []Range{{a("203.0.113.64"), a("203.0.113.79")}}, Ports: []int{1}},
		{Name: "sv1", Ranges: []Range{{a("192.0.2.0"), a("192.0.2.15")}, {a("2001:db8:1::"), a("2001:db8:1::ffff:ffff:ffff:ffff")}}},
		{Name: "sv2", Ranges: []Range{{a("203.0.113.16"), a("203.0.113.31")}}},
	}
	want.Gateways = []Gateway{
		{Name: "default", ID: id(1), Pools: []int{1}, VPC: -1},
		{Name: "sv2", ID: id(2), Pools: []int{2}, Addresses: []netip.Addr{a("203.0.113.65")}, VPC: -1},
		{Name: "private", ID: id(3), Pools: []int{2}, VPC: 0},
	}
	want.VPCs = []VPC{{
		Weight:  1,
		Name:    "blue",
		Attach:  []Attachment{{Port: 0, Addresses: []netip.Prefix{p("172.30.0.1/22"), p("fd00:1::1/64")}}},
		Subnets: []netip.Prefix{p("172.30.0.0/22"), p("172.30.4.0/22"), p("fd00:1::/64")},
		Routes: []Route{
			{To: p("0.0.0.0/0"), Class: System, Target: TargetGateway, Gateway: 0},
			{To: p("8.8.8.0/24"), From: p("172.30.4.0/22"), Class: Custom, Target: TargetGateway, Gateway: UnnamedGateway},
			{To: p("10.8.0.0/16"), Class: Custom, Target: TargetAddress, Address: a("172.30.0.9")},
			{To: p("45.154.216.0/24"), Class: Custom, Target: TargetGateway, Gateway: 1},
			{To: p("100.64.0.0/10"), Class: Custom, Target: TargetDrop},
			{To: p("::/0"), Class: System, Target: TargetGateway, Gateway: 0},
		},
		Instances: []Instance{{
			Name: "web-1", Address4: a("172.30.0.5"), Address6: a("fd00:1::5"), MAC: mac("a8:40:25:f0:00:05"),
			Floating:    []netip.Addr{a("192.0.2.2"), a("192.0.2.3"), a("203.0.113.20"), a("2001:db8:1::5")},
			Ephemeral:   []netip.Addr{a("192.0.2.1")},
			SNAT:        []SNAT{{a("192.0.2.14"), 1024, 17407}},
			Forwards:    []Forward{{a("192.0.2.14"), TCP, 8022, 22}},
			PerInstance: 65536,
		}},
	}}
	got := load(t, "testdata/example.yaml")
	if diff := cmp.Diff(&want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	checkGuarantees(t, got)
}

// The defaults are what a file without the keys gives, and what the example writes out.
func TestDefaults(t *testing.T) {
	got, _, err := Parse([]File{{"f.yaml", []byte("version: 1\n")}})
	if err != nil {
		t.Fatal(err)
	}
	if !Equal(got, &DefaultConfig) {
		t.Errorf("got %+v, want %+v", *got, DefaultConfig)
	}
}

// Limits come from the nearest that states one.
func TestLimits(t *testing.T) {
	c, _, err := Parse([]File{{"f.yaml", []byte(`version: 1
sessions: {limits: {per_instance: 10, per_vpc: 20}}
ports: [{name: in, device: net_tap0, side: inside}, {name: in2, device: net_tap1, side: inside}]
vpcs:
  - name: a
    attach: [{port: in}]
    subnets: [10.0.0.0/24]
    limits: {per_instance: 11, per_vpc: 0}
    instances:
      - {name: own, addresses: [10.0.0.4], limits: {per_instance: 0}}
      - {name: vpc, addresses: [10.0.0.5]}
  - name: b
    attach: [{port: in2}]
    subnets: [10.0.0.0/24]
    instances: [{name: i, addresses: [10.0.0.4]}]
`)}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := c.VPCs[0], c.VPCs[1]
	got := []int{a.PerVPC, a.Instances[0].PerInstance, a.Instances[1].PerInstance, b.PerVPC, b.Instances[0].PerInstance}
	if want := []int{0, 0, 11, 20, 10}; !slices.Equal(got, want) {
		t.Errorf("limits %v, want %v", got, want)
	}
}

// A route finds a gateway by ID, then among those of its VPC, then among those of all.
func TestGatewayNames(t *testing.T) {
	c, _, err := Parse([]File{{"f.yaml", []byte(`version: 1
gateways:
  - {name: g, id: 00000000-0000-4000-8000-000000000001}
  - {name: g, id: 00000000-0000-4000-8000-000000000002, vpc: a}
vpcs:
  - name: a
    routes:
      - {to: 1.0.0.0/8, gateway: g}
      - {to: 2.0.0.0/8, gateway: 00000000-0000-4000-8000-000000000001}
      - {to: 3.0.0.0/8, gateway: unnamed}
  - {name: b, routes: [{to: 1.0.0.0/8, gateway: g}]}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := c.VPCs[0].Routes, c.VPCs[1].Routes
	got := []int{a[0].Gateway, a[1].Gateway, a[2].Gateway, b[0].Gateway}
	if want := []int{1, 0, UnnamedGateway, 0}; !slices.Equal(got, want) {
		t.Errorf("gateways %v, want %v", got, want)
	}
}

func TestTooManyVPCs(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("version: 1\nvpcs:\n")
	for i := range MaxVPCs + 1 {
		fmt.Fprintf(&b, "- {name: v%d}\n", i)
	}
	_, _, err := Parse([]File{{"f.yaml", b.Bytes()}})
	if want := "f.yaml:65538: vpcs[65535]: there are 65536 VPCs; expected at most 65535"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %v", err, want)
	}
}

// As many workers as there may be, and one more; a fault of one core does not hide that there are
// too many.
func TestMaxWorkers(t *testing.T) {
	parse := func(cores []int) (*Config, error) {
		text := "version: 1\ndataplane: {workers: " + strings.ReplaceAll(fmt.Sprint(cores), " ", ", ") + "}\n"
		c, _, err := Parse([]File{{"f.yaml", []byte(text)}})
		return c, err
	}
	var cores []int
	for i := range MaxWorkers {
		cores = append(cores, 2*(MaxWorkers-i)) // in the order that they are named in
	}
	if c, err := parse(cores); err != nil || !slices.Equal(c.Dataplane.Workers, cores) {
		t.Errorf("%d workers: %v", MaxWorkers, err)
	}
	const many = "f.yaml:2: dataplane.workers: 65 cores are listed; expected at most 64"
	if _, err := parse(append(slices.Clip(cores), 1)); err == nil || err.Error() != many {
		t.Errorf("got %v, want %v", err, many)
	}
	const twice = "f.yaml:2: dataplane.workers[64]: core 2 is already in the list; expected each core once"
	if _, err := parse(append(slices.Clip(cores), 2)); err == nil || err.Error() != many+"\n"+twice {
		t.Errorf("got %v, want %v and %v", err, many, twice)
	}
}

// The same objects in another order, split over files and written another way, are the same Config.
func TestOrderDoesNotMatter(t *testing.T) {
	for _, c := range readCases(t, "testdata/same.txt") {
		if c.name == "one" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			want, _, err := Parse(readCases(t, "testdata/same.txt")[0].files)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := Parse(c.files)
			if err != nil {
				t.Fatal(err)
			}
			if !Equal(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			if d := Diff(want, got); len(d) > 0 {
				t.Errorf("differences: %q", d)
			}
		})
	}
}

// The examples of the manual are good configurations, together in one directory.
func TestManual(t *testing.T) {
	docs, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var files []File
	for i, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(docs, -1) {
		files = append(files, File{fmt.Sprintf("example %d", i+1), block[1]})
	}
	c, warnings, err := Parse(files)
	if err != nil || len(warnings) > 0 || len(files) != 2 || len(c.VPCs[0].Instances) != 3 {
		t.Errorf("%d examples: %v, %v", len(files), err, warnings)
	}
}

// Every key of the schema is in the example or in a case, so none is untested.
func TestEveryKeyIsTried(t *testing.T) {
	var text bytes.Buffer
	for _, name := range append(archives(t), "testdata/example.yaml") {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(data)
	}
	docs, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, keys := range [][]string{rootKeys, apiKeys, metricsKeys, logKeys, dataplaneKeys, portKeys, nextHopKeys, poolKeys, gatewayKeys, sessionsKeys,
		poolSessions, limitsKeys, timeoutsKeys, reloadKeys, warningsKeys, vpcKeys, attachKeys, routeKeys, placedKeys, externalKeys, snatKeys, forwardKeys} {
		for _, key := range keys {
			if !regexp.MustCompile(`\b`+key+`: *\S`).Match(text.Bytes()) && !regexp.MustCompile(`(?m)\b`+key+`:$`).Match(text.Bytes()) {
				t.Errorf("no test has the key %q", key)
			}
			if !regexp.MustCompile("`[a-z_.\\[\\]]*\\b" + key + "\\b").Match(docs) {
				t.Errorf("docs/configuration.md does not have the key %q", key)
			}
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fails := func(path, want string) {
		t.Helper()
		_, _, err := Load(path)
		if _, ok := err.(Faults); !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%s): %T %v, want Faults with %q", path, err, err, want)
		}
		if Digest(path) != DigestOf(ReadFiles(path)) {
			t.Errorf("%s: its digest is not that of its files", path)
		}
	}
	fails(filepath.Join(dir, "none.yaml"), "none.yaml: cannot be read: no such file or directory")
	fails(dir, "has no configuration; expected at least one *.yaml or *.yml file")

	write("b.yml", "version: 1\napi: {listen: \"[::1]:1\"}\nwarnings: {ignore: [\"no-ports:*\"]}\n")
	write("a.yaml", "version: 1\nlog: {level: error}\n")
	write(".hidden.yaml", "not YAML: [")
	write("a.yaml.bak", "not YAML: [")
	if err := os.Mkdir(filepath.Join(dir, "sub.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	if c := load(t, dir); c.Log.Level != "error" || c.API.Listen != "[::1]:1" {
		t.Errorf("the two files give %+v", c)
	}
	was := Digest(dir)
	if was != DigestOf(ReadFiles(dir)) {
		t.Error("the digest of the directory is not that of its files")
	}
	write("c.yaml", "version: 1\nlog: {level: info}\n")
	if Digest(dir) == was {
		t.Error("one more file does not change the digest")
	}
	fails(dir, "c.yaml:2: log: is already set at "+filepath.Join(dir, "a.yaml")+":2; expected log in one file only")

	write("c.yaml", "version: 1\n#"+strings.Repeat("x", MaxFileSize))
	fails(dir, "c.yaml: cannot be read: it is larger than 16 MiB")

	// Refused unread: by its size, without memory for it.
	if err := os.Truncate(filepath.Join(dir, "c.yaml"), 100<<20); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fails(filepath.Join(dir, "c.yaml"), "c.yaml: cannot be read: it is larger than 16 MiB")
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("a file of 100 MiB takes %d bytes to refuse", n)
	}

	// Files that are small enough each, and too much together.
	if err := os.Remove(filepath.Join(dir, "c.yaml")); err != nil {
		t.Fatal(err)
	}
	for i := range MaxSize/MaxFileSize + 1 {
		name := fmt.Sprintf("d%02d.yaml", i)
		write(name, "")
		if err := os.Truncate(filepath.Join(dir, name), MaxFileSize); err != nil {
			t.Fatal(err)
		}
	}
	fails(dir, "cannot be read: its files are larger than 256 MiB in total")
	fails("/dev/zero", "/dev/zero: cannot be read: it is not a regular file")
}

// A file that weir's user may not read, and a directory that he may not list, say so.
func TestLoadWithoutPermission(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "weir.yaml")
	if err := os.WriteFile(path, []byte("version: 1\n"), 0o000); err != nil {
		t.Fatal(err)
	}
	const root, nobody = 0, 65534
	for parent := dir; os.Geteuid() == root && parent != filepath.Clean(os.TempDir()); parent = filepath.Dir(parent) {
		if err := os.Chmod(parent, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	denied := func(path string) {
		t.Helper()
		runtime.LockOSThread() // whose rights over files are nobody's meanwhile
		defer runtime.UnlockOSThread()
		if os.Geteuid() == root {
			unix.SetfsuidRetUid(nobody)
			defer unix.SetfsuidRetUid(root)
		}
		if _, _, err := Load(path); err == nil || err.Error() != path+": cannot be read: permission denied" {
			t.Errorf("%v, expected that permission is denied", err)
		}
	}
	denied(path)
	if err := os.Chmod(dir, 0); err != nil {
		t.Fatal(err)
	}
	denied(path)
	denied(dir)
}

func TestRangeString(t *testing.T) {
	for _, s := range []string{"192.0.2.0/28", "192.0.2.1", "192.0.2.0-192.0.2.14", "192.0.2.1-192.0.2.16", "2001:db8::/64", "2001:db8::/127", "2001:db8::1-2001:db8::2"} {
		r, err := parseRange(s)
		if err != nil || r.String() != s {
			t.Errorf("%s reads and writes as %v (%v)", s, r, err)
		}
	}
}

func TestParsers(t *testing.T) {
	for _, c := range []struct {
		name, text string
		good       bool
		parse      func(string) error
	}{
		{"listen", "", true, drop(parseListen)},
		{"listen", ":9474", true, drop(parseListen)},
		{"listen", "[::1]:9474", true, drop(parseListen)},
		{"listen", "localhost:0", true, drop(parseListen)},
		{"listen", "::1:9474", false, drop(parseListen)},
		{"listen", "127.0.0.1", false, drop(parseListen)},
		{"listen", "example.net:80", false, drop(parseListen)},
		{"listen", "127.0.0.1:http", false, drop(parseListen)},
		{"listen", "127.0.0.1:65536", false, drop(parseListen)},
		{"size", "64MiB", true, drop(parseSize)},
		{"size", "1TiB", true, drop(parseSize)},
		{"size", "65536KiB", true, drop(parseSize)},
		{"size", "63MiB", false, drop(parseSize)},
		{"size", "2TiB", false, drop(parseSize)},
		{"size", "512MB", false, drop(parseSize)},
		{"size", "999999999TiB", false, drop(parseSize)},
		{"device", "3b:00.1", true, drop(parseDevice)},
		{"device", "0000:3b:00.1,representor=[0-3]", true, drop(parseDevice)},
		{"device", "net_pcap0,rx_pcap=/tmp/a.pcap", true, drop(parseDevice)},
		{"device", "auxiliary:mlx5_core.sf.2", true, drop(parseDevice)},
		{"device", "0000:3b:00.9", false, drop(parseDevice)},
		{"device", "net_af_packet0, iface=eth0", false, drop(parseDevice)},
		{"device", "", false, drop(parseDevice)},
		{"interface", "192.0.2.0/31", true, drop(parseInterface)},
		{"interface", "192.0.2.1/31", true, drop(parseInterface)},
		{"interface", "2001:db8::/127", true, drop(parseInterface)},
		{"interface", "192.0.2.7/32", true, drop(parseInterface)},
		{"interface", "2001:db8::ffff:ffff:ffff:ffff/64", true, drop(parseInterface)},
		{"interface", "192.0.2.0/24", false, drop(parseInterface)},
		{"interface", "192.0.2.255/24", false, drop(parseInterface)},
		{"interface", "2001:db8::/64", false, drop(parseInterface)},
		{"interface", "192.0.2.1/0", false, drop(parseInterface)},
		{"network", "10.0.0.0/8", true, drop(parseNetwork)},
		{"network", "0.0.0.0/1", false, drop(parseNetwork)},
		{"network", "128.0.0.0/1", false, drop(parseNetwork)},
		{"network", "192.0.0.0/3", true, drop(parseNetwork)},
		{"network", "::/3", false, drop(parseNetwork)},
		{"network", "2000::/3", true, drop(parseNetwork)},
		{"network", "::ffff:10.0.0.0/104", false, drop(parseNetwork)},
		{"range", "192.0.2.1", true, drop(parseRange)},
		{"range", "192.0.2.1-2001:db8::1", false, drop(parseRange)},
		{"range", "126.0.0.0-128.0.0.0", false, drop(parseRange)},
		{"range", "192.0.2.1-", false, drop(parseRange)},
		{"ports", "1-65535", true, drop(parsePorts)},
		{"ports", "7-7", true, drop(parsePorts)},
		{"ports", "0-7", false, drop(parsePorts)},
		{"ports", "7", false, drop(parsePorts)},
		{"ports", "-7", false, drop(parsePorts)},
		{"ports", "65000-65536", false, drop(parsePorts)},
		{"ports", "8-7", false, drop(parsePorts)},
		{"ports", "+1-7", false, drop(parsePorts)},
		{"duration", "2h4m", true, drop(parseDuration)},
		{"duration", "24h", true, drop(parseDuration)},
		{"duration", "24h1ms", false, drop(parseDuration)},
		{"duration", "-1s", false, drop(parseDuration)},
		{"duration", "1.5ms", false, drop(parseDuration)},
		{"duration", "1d", false, drop(parseDuration)},
		{"percent", "100%", true, drop(parsePercent)},
		{"percent", "101%", false, drop(parsePercent)},
		{"percent", "50", false, drop(parsePercent)},
		{"mac", "02:00:00:00:00:01", true, drop(parseMAC)},
		{"mac", "01:00:5e:00:00:01", false, drop(parseMAC)},
		{"mac", "00:00:00:00:00:00", false, drop(parseMAC)},
		{"mac", "02:00:00:00:00:00:00:01", false, drop(parseMAC)},
		{"name", "a.b_c-d", true, drop(parseName)},
		{"name", strings.Repeat("x", 63), true, drop(parseName)},
		{"name", strings.Repeat("x", 64), false, drop(parseName)},
		{"name", "-a", false, drop(parseName)},
		{"name", "a b", false, drop(parseName)},
		{"name", "a\n", false, drop(parseName)},
		{"id", "00000000-0000-4000-8000-00000000000A", true, drop(parseID)},
		{"id", "00000000-0000-0000-0000-000000000000", false, drop(parseID)},
		{"id", "000000000000400080000000000000001", false, drop(parseID)},
	} {
		if err := c.parse(c.text); (err == nil) != c.good {
			t.Errorf("%s %q: %v", c.name, c.text, err)
		}
	}
	if a, b := DeviceName("3B:00.1"), DeviceName("0000:3b:00.1,x=1"); a != b {
		t.Errorf("one device has the names %q and %q", a, b)
	}
	id, _ := parseID("00000000-0000-4000-8000-00000000000A")
	if m, _ := parseMAC("02:00:00:00:00:0A"); m.String() != "02:00:00:00:00:0a" {
		t.Errorf("the MAC address is written as %v", m)
	}
	if got := id.String(); got != "00000000-0000-4000-8000-00000000000a" {
		t.Errorf("the ID is written as %s", got)
	}
}

func drop[T any](parse func(string) (T, error)) func(string) error {
	return func(s string) error {
		_, err := parse(s)
		return err
	}
}

// FuzzParse: no bytes make Parse panic, and what it accepts holds the stated guarantees.
func FuzzParse(f *testing.F) {
	for _, archive := range archives(f) {
		for _, c := range readCases(f, archive) {
			for _, file := range c.files {
				f.Add(file.Data)
			}
		}
	}
	example, err := os.ReadFile("testdata/example.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, warnings, err := Parse([]File{{"f.yaml", data}})
		if err != nil {
			if faults, ok := err.(Faults); !ok || len(faults) == 0 || c != nil || warnings != nil {
				t.Fatalf("%v and %v with a %T: %v", c, warnings, err, err)
			}
			return
		}
		checkGuarantees(t, c)
		if again, _, err := Parse([]File{{"f.yaml", data}}); err != nil || !Equal(c, again) || len(Diff(c, again)) > 0 {
			t.Fatalf("a second reading differs (%v)", err)
		}
	})
}

// checkGuarantees holds c against what the package's comment states, by the slowest and plainest
// means.
func checkGuarantees(t testing.TB, c *Config) {
	t.Helper()
	check := func(ok bool, format string, args ...any) {
		t.Helper()
		if !ok {
			t.Errorf("not guaranteed: "+format, args...)
		}
	}
	check(!hasEmptyList(reflect.ValueOf(*c)), "an empty list is not nil")
	check(len(c.Dataplane.Workers) >= 1 && len(c.Dataplane.Workers) <= MaxWorkers, "workers %v", c.Dataplane.Workers)
	check(c.Dataplane.Sessions >= MinSessions && c.Dataplane.Sessions <= MaxSessions, "capacity %d", c.Dataplane.Sessions)
	check(c.Dataplane.Memory >= MinMemory && c.Dataplane.Memory <= MaxMemory, "memory %d", c.Dataplane.Memory)
	check(c.Reload.MaxShrink >= 0 && c.Reload.MaxShrink <= 100, "max_shrink %d", c.Reload.MaxShrink)
	times := c.Sessions.Timeouts
	for _, d := range []time.Duration{times.TCPPartiallyOpen, times.TCPEstablished, times.TCPClosing, times.UDP, times.ICMP, times.Other} {
		check(d >= time.Second && d <= 24*time.Hour && d%time.Millisecond == 0, "timeout %v", d)
	}
	check(slices.IsSortedFunc(c.Ports, func(a, b Port) int { return strings.Compare(a.Name, b.Name) }), "ports are sorted")
	check(slices.IsSortedFunc(c.Pools, func(a, b Pool) int { return strings.Compare(a.Name, b.Name) }), "pools are sorted")
	check(slices.IsSortedFunc(c.Gateways, func(a, b Gateway) int { return bytes.Compare(a.ID[:], b.ID[:]) }), "gateways are sorted")
	check(slices.IsSortedFunc(c.VPCs, func(a, b VPC) int { return strings.Compare(a.Name, b.Name) }), "VPCs are sorted")

	for i, p := range c.Ports {
		check(i == 0 || p.Name != c.Ports[i-1].Name, "port names are unique")
		check(p.MTU >= 68 && p.MTU <= MaxMTU && p.Device != "", "port %+v", p)
		check(p.Side == Outside || p.Addresses == nil && p.NextHops == nil && p.PrivateSources == nil && p.Answer == 0, "inside port %+v", p)
		for _, hop := range p.NextHops {
			check(slices.ContainsFunc(p.Addresses, func(own netip.Prefix) bool {
				return own.Contains(hop.Address) && own.Addr() != hop.Address
			}), "next hop %v is a neighbor", hop)
		}
	}
	var ranges []Range
	for i, p := range c.Pools {
		check(i == 0 || p.Name != c.Pools[i-1].Name, "pool names are unique")
		check(len(p.Ranges) > 0, "pool %s has ranges", p.Name)
		ranges = append(ranges, p.Ranges...)
		for _, port := range p.Ports {
			check(c.Ports[port].Side == Outside, "port %d of pool %s is outside", port, p.Name)
		}
	}
	for i, a := range ranges {
		check(a.From.BitLen() == a.To.BitLen() && !a.To.Less(a.From), "range %v", a)
		for _, b := range ranges[:i] {
			check(!a.Contains(b.From) && !b.Contains(a.From), "%v and %v are apart", a, b)
		}
	}
	pools := func(a netip.Addr) (n int) {
		for _, r := range ranges {
			if r.Contains(a) {
				n++
			}
		}
		return n
	}
	for i, g := range c.Gateways {
		check(g.ID != ID{} && (i == 0 || g.ID != c.Gateways[i-1].ID), "gateway IDs are unique")
		check(g.VPC >= -1 && g.VPC < len(c.VPCs), "owner %d of gateway %s", g.VPC, g.Name)
		for _, p := range g.Pools {
			check(p >= 0 && p < len(c.Pools), "pool %d of gateway %s", p, g.Name)
		}
		for _, a := range g.Addresses {
			check(pools(a) == 1, "%v of gateway %s is in one pool", a, g.Name)
		}
	}

	holders := map[netip.Addr]string{}
	var shares []SNAT
	var attached []netip.Prefix
	untranslated := map[netip.Prefix]string{}
	attachments := map[attachKey]bool{}
	for i, v := range c.VPCs {
		check(i == 0 || v.Name != c.VPCs[i-1].Name, "VPC names are unique")
		taken := map[netip.Addr]bool{}
		take := func(a netip.Addr) {
			check(!taken[a], "%v of VPC %s is one's own", a, v.Name)
			taken[a] = true
		}
		for _, at := range v.Attach {
			check(c.Ports[at.Port].Side == Inside && !attachments[attachKey{at.Port, at.VLAN, at.Encap, at.Tunnel.VNI}], "attachment %+v", at)
			attachments[attachKey{at.Port, at.VLAN, at.Encap, at.Tunnel.VNI}] = true
			for _, a := range at.Addresses {
				take(a.Addr())
			}
		}
		for j, s := range v.Subnets {
			check(s == s.Masked() && s.Bits() > 0, "subnet %v is canonical", s)
			for _, other := range v.Subnets[:j] {
				check(!s.Overlaps(other), "subnets %v and %v are apart", s, other)
			}
		}
		inSubnet := func(a netip.Addr) bool {
			return slices.ContainsFunc(v.Subnets, func(s netip.Prefix) bool { return s.Contains(a) })
		}
		for j, r := range v.Routes {
			check(r.To == r.To.Masked(), "route to %v", r.To)
			check(r.Gateway >= UnnamedGateway && r.Gateway < max(len(c.Gateways), 1), "route %+v", r)
			check(!r.From.IsValid() || slices.Contains(v.Subnets, r.From) && r.From.Addr().Is4() == r.To.Addr().Is4(), "route %+v", r)
			switch r.Target {
			case TargetGateway:
				check(r.Gateway == UnnamedGateway || c.Gateways[r.Gateway].VPC == -1 || c.Gateways[r.Gateway].VPC == i, "route %+v", r)
			case TargetAddress:
				check(inSubnet(r.Address) && r.Address.Is4() == r.To.Addr().Is4(), "route %+v", r)
			case TargetSubnet:
				check(slices.Contains(v.Subnets, r.Subnet) && r.Subnet.Addr().Is4() == r.To.Addr().Is4(), "route %+v", r)
			}
			for _, other := range v.Routes[:j] {
				check(r.To != other.To || r.From != other.From || r.Class != other.Class, "routes %+v and %+v", r, other)
			}
		}
		for _, r := range v.Routes {
			check(!r.Untranslated || r.Target == TargetGateway, "route %+v", r)
			if !r.Untranslated {
				continue
			}
			for s := range v.Untranslated(&r) {
				check(untranslated[s] == "" || untranslated[s] == v.Name, "subnet %v leaves untranslated from one VPC", s)
				for other, of := range untranslated {
					check(of == v.Name || !other.Overlaps(s), "subnets %v and %v are apart", s, other)
				}
				for _, pool := range ranges {
					check(!rangeOf(s).meets(pool), "subnet %v lies in no pool", s)
				}
				untranslated[s] = v.Name
			}
		}
		for j, in := range v.Instances {
			check(j == 0 || v.Instances[j-1].Name < in.Name, "instances are sorted, each name once")
			check(in.Address4.IsValid() || in.Address6.IsValid(), "instance %s has an address", in.Name)
			check(!in.Address4.IsValid() || in.Address4.Is4() && inSubnet(in.Address4), "address %v", in.Address4)
			check(!in.Address6.IsValid() || in.Address6.Is6() && inSubnet(in.Address6), "address %v", in.Address6)
			has := func(a netip.Addr) bool {
				return a.Is4() && in.Address4.IsValid() || a.Is6() && in.Address6.IsValid()
			}
			for _, a := range []netip.Addr{in.Address4, in.Address6} {
				if a.IsValid() {
					take(a)
				}
			}
			check(len(in.Ephemeral) < 3 && (len(in.Ephemeral) < 2 || in.Ephemeral[0].Is4() != in.Ephemeral[1].Is4()), "ephemeral %v", in.Ephemeral)
			for _, a := range slices.Concat(in.Floating, in.Ephemeral) {
				check(pools(a) == 1 && holders[a] == "" && has(a), "%v of instance %s", a, in.Name)
				holders[a] = in.Name
			}
			for _, s := range in.SNAT {
				check(pools(s.Address) == 1 && s.First >= 1 && s.First <= s.Last && has(s.Address), "%+v of instance %s", s, in.Name)
			}
			shares = append(shares, in.SNAT...)
			for k, f := range in.Forwards {
				check(slices.ContainsFunc(in.SNAT, func(s SNAT) bool { return s.Address == f.Address && s.First <= f.Port && f.Port <= s.Last }), "%+v lies in a share of %s", f, in.Name)
				for _, other := range in.Forwards[:k] {
					check(f.Address != other.Address || f.Protocol != other.Protocol || f.Port > other.Port && f.ToPort != other.ToPort, "forwards %+v and %+v", other, f)
				}
			}
			for _, p := range in.Attached {
				check(p == p.Masked() && has(p.Addr()), "attached %v", p)
				check(slices.ContainsFunc(ranges, func(r Range) bool { return r.Contains(p.Addr()) && r.Contains(rangeOf(p).To) }), "%v is in one pool", p)
			}
			attached = append(attached, in.Attached...)
		}
	}
	for i, s := range shares {
		check(holders[s.Address] == "", "%v is shared and whole", s.Address)
		holders[s.Address] = ""
		for _, other := range shares[:i] {
			check(s.Address != other.Address || s.Last < other.First || other.Last < s.First, "%+v and %+v", s, other)
		}
	}
	for i, p := range attached {
		for a := range holders {
			check(!p.Contains(a), "%v is outside %v", a, p)
		}
		for _, other := range attached[:i] {
			check(!p.Overlaps(other), "%v and %v are apart", p, other)
		}
	}
}

// hasEmptyList reports whether v holds a slice that is empty and not nil.
func hasEmptyList(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice:
		if v.Len() == 0 && !v.IsNil() {
			return true
		}
		for i := range v.Len() {
			if hasEmptyList(v.Index(i)) {
				return true
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if hasEmptyList(v.Field(i)) {
				return true
			}
		}
	}
	return false
}

// BenchmarkParse reads and checks 100,000 instances with 200,000 external addresses.
func BenchmarkParse(b *testing.B) {
	files := large(100000)
	for b.Loop() {
		if _, _, err := Parse(files); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheck is BenchmarkParse without the reading of YAML.
func BenchmarkCheck(b *testing.B) {
	files := large(100000)
	for b.Loop() {
		b.StopTimer()
		doc, _, _ := join(new(Parser).read(b.Context(), files))
		c := checker{doc: doc, config: doc.config}
		b.StartTimer()
		c.check()
		c.warn()
		if len(c.faults.list) > 0 {
			b.Fatal(c.faults.list[0])
		}
	}
}

func BenchmarkEqual(b *testing.B) {
	files := large(100000)
	x, _, _ := Parse(files)
	y, _, _ := Parse(files)
	for b.Loop() {
		if !Equal(x, y) {
			b.Fatal("not equal")
		}
	}
}

func BenchmarkDiff(b *testing.B) {
	files := large(100000)
	x, _, _ := Parse(files)
	y, _, _ := Parse(files)
	for b.Loop() {
		if d := Diff(x, y); len(d) > 0 {
			b.Fatal(d[0])
		}
	}
}

// large returns a configuration of n instances, with a floating address and an SNAT range each, in
// as many VPCs as there may be inside ports.
func large(n int) []File {
	const inside = MaxPorts
	var b bytes.Buffer
	b.WriteString("version: 1\npools: [{name: p, ranges: [20.0.0.0/8]}]\n" +
		"gateways: [{name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}]\nports:\n")
	for i := range inside {
		fmt.Fprintf(&b, "  - {name: in%d, device: net_tap%d, side: inside}\n", i, i)
	}
	b.WriteString("vpcs:\n")
	for v := range inside {
		fmt.Fprintf(&b, "  - name: v%d\n    attach: [{port: in%d}]\n    subnets: [10.0.0.0/8]\n", v, v)
		b.WriteString("    routes: [{to: 0.0.0.0/0, gateway: g}]\n    instances:\n")
		for i := v; i < n; i += inside {
			fmt.Fprintf(&b, "      - {name: i%d, addresses: [10.%d.%d.%d], external: {floating: [20.%d.%d.%d], snat: [{address: 20.128.%d.%d, ports: %d-%d}]}}\n",
				i, i>>16, i>>8&255, i&255, i>>16, i>>8&255, i&255,
				i/32>>8, i/32&255, i%32*2048+1, i%32*2048+1024)
		}
	}
	return []File{{"large.yaml", b.Bytes()}}
}

// Every warning has one of the names that warnings.ignore takes, and what weir check prints of it
// silences it there.
func TestWarningNames(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range readCases(t, "testdata/warnings.txt") {
		_, warnings, err := Parse(c.files)
		if err != nil {
			continue // it is about faults
		}
		for _, w := range warnings {
			if !slices.Contains(warningNames, w.Name) || w.Object == "" {
				t.Errorf("%s: %v has name %q and object %q", c.name, w, w.Name, w.Object)
				continue
			}
			seen[w.Name] = true
			quiet := append(slices.Clone(c.files), File{"quiet.yaml", fmt.Appendf(nil, "version: 1\nwarnings: {ignore: [%q]}\n", w.Name+":"+w.Object)})
			if slices.ContainsFunc(c.files, func(f File) bool { return strings.Contains(string(f.Data), "\nwarnings:") }) {
				continue // which only one file may have
			}
			_, left, err := Parse(quiet)
			if err != nil || slices.ContainsFunc(left, func(l Warning) bool { return l.Name == w.Name && l.Object == w.Object }) {
				t.Errorf("%s: %s:%s is ignored and there: %v, %v", c.name, w.Name, w.Object, left, err)
			}
		}
	}
	for _, name := range warningNames {
		if !seen[name] && name != "no-ports" { // see good.txt
			t.Errorf("no case has a warning %s", name)
		}
	}
}
