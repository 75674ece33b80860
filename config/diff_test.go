// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each change of the example by one text for another, and the words for it.
func TestDiff(t *testing.T) {
	data, err := os.ReadFile("testdata/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	example := string(data)
	old := load(t, "testdata/example.yaml")
	for _, c := range []struct {
		name        string
		before      string
		after       string
		diff        []string
		restartOnly []string
	}{
		{name: "a comment", before: "# read at start", after: "# another"},
		{name: "another order", before: "floating: [192.0.2.2, 192.0.2.3, ", after: "floating: [192.0.2.3, 192.0.2.2, "},
		{"api", "127.0.0.1:9474", ":9474", []string{"api changed"}, []string{"api"}},
		{"tenants", "tenants: names", "tenants: off", []string{"metrics changed"}, nil},
		{"log", "level: info", "level: warn", []string{"log changed"}, []string{"log"}},
		{"workers", "workers: [1]", "workers: [2]", []string{"dataplane changed"}, []string{"dataplane.workers"}},
		{"memory", "512MiB", "1GiB", []string{"dataplane changed"}, []string{"dataplane.memory"}},
		{"idle", "idle: sleep", "idle: busy", []string{"dataplane changed"}, []string{"dataplane.idle"}},
		{"capacity", "sessions: 1048576", "sessions: 4096", []string{"dataplane changed"}, []string{"dataplane.sessions"}},
		{"interrupts", "vfio_intr: auto", "vfio_intr: msi", []string{"dataplane changed"}, []string{"dataplane.vfio_intr"}},
		{"addresses of devices", "iova: auto", "iova: va", []string{"dataplane changed"}, []string{"dataplane.iova"}},
		{"spread", "spread: flow", "spread: endpoint", []string{"sessions changed"}, nil},
		{"a timeout", "udp: 5m", "udp: 6m", []string{"sessions changed"}, nil},
		{"max_shrink", "50%", "40%", []string{"reload changed"}, nil},
		{"device", `"0000:3b:00.1"`, `"0000:3b:00.0"`, []string{`port "outside" changed`}, []string{`port "outside" device`}},
		{"MTU", "mtu: 1500", "mtu: 9000", []string{`port "inside" changed`}, []string{`port "inside" mtu`}},
		{"MAC", "mac: 02:00:00:00:00:01 ", "mac: 02:00:00:00:00:02 ", []string{`port "inside" changed`}, []string{`port "inside" mac`}},
		{"port address", "198.51.100.2/24", "198.51.100.3/24", []string{`port "outside" changed`}, nil},
		{"answer", "on-link   ", "none", []string{`port "outside" changed`}, nil},
		{"a port before others", "  - name: inside\n", "  - {name: another, device: net_tap7, side: outside, addresses: [203.0.113.130/25, \"2001:db8:9::1/64\"]}\n  - name: inside\n",
			[]string{`port "another" added`}, []string{`port "another" added`}},
		{"a pool before others", "  - {name: sv1,", "  - {name: a, ranges: [203.0.113.192/28], ports: [outside]}\n  - {name: sv1,", []string{`pool "a" added`}, nil},
		{"a pool changes its name", "{name: old,", "{name: older,", []string{`pool "old" removed`, `pool "older" added`}, nil},
		{"a pool grows", "192.0.2.0/28,", "192.0.2.0/27,", []string{`pool "sv1" changed`}, nil},
		{"a pool leaves by any port", ", ports: [outside]}", "}", []string{`pool "old" changed`}, nil},
		{"a gateway's pools", "00000001, pools: [sv1]", "00000001, pools: [sv1, old]", []string{"gateway 00000000-0000-4000-8000-000000000001 changed"}, nil},
		{"a gateway's ID", "8000-000000000001", "8000-00000000000f", []string{
			"gateway 00000000-0000-4000-8000-000000000001 removed", "gateway 00000000-0000-4000-8000-00000000000f added",
			`system route to 0.0.0.0/0 of vpc "blue" changed`, `system route to ::/0 of vpc "blue" changed`}, nil},
		{"a gateway becomes everybody's", ", vpc: blue}", "}", []string{"gateway 00000000-0000-4000-8000-000000000003 changed"}, nil},
		{"a VPC before others", "  - name: blue\n", "  - {name: azure, subnets: [10.0.0.0/8]}\n  - name: blue\n", []string{`vpc "azure" added`}, nil},
		{"an attachment", "172.30.0.1/22, ", "172.30.0.2/22, ", []string{`vpc "blue" changed`}, nil},
		{"a limit", "per_vpc: 0", "per_vpc: 9", []string{"sessions changed", `vpc "blue" changed`}, nil},
		{"a route's target", "gateway: sv2}", "gateway: private}", []string{`route to 45.154.216.0/24 of vpc "blue" changed`}, nil},
		{"a route's translation", "gateway: sv2}", "gateway: sv2, translate: false}", []string{`route to 45.154.216.0/24 of vpc "blue" changed`}, nil},
		{"a route's class", "drop: true}", "drop: true, class: system}", []string{
			`route to 100.64.0.0/10 of vpc "blue" removed`, `system route to 100.64.0.0/10 of vpc "blue" added`}, nil},
		{"a route's from", ", from: 172.30.4.0/22", "", []string{
			`route to 8.8.8.0/24 from 172.30.4.0/22 of vpc "blue" removed`, `route to 8.8.8.0/24 of vpc "blue" added`}, nil},
		{"a route's next hop", "172.30.0.9", "172.30.0.10", []string{`route to 10.8.0.0/16 of vpc "blue" changed`}, nil},
		{"an instance's forwards", "to_port: 22", "to_port: 23", []string{`instance "web-1" of vpc "blue" changed`}, nil},
		{"an instance's name", "web-1", "web-2", []string{`instance "web-1" of vpc "blue" renamed "web-2"`}, nil},
		{"an instance's name and a port", "name: web-1", "name: web-2\n        limits: {per_instance: 7}", []string{`instance "web-1" of vpc "blue" renamed "web-2" and changed`}, nil},
		{"an instance's name and IPv6 address", "name: web-1\n        addresses: [172.30.0.5, \"fd00:1::5\"]", "name: web-2\n        addresses: [172.30.0.5, \"fd00:1::6\"]", []string{`instance "web-1" of vpc "blue" renamed "web-2" and changed`}, nil},
		{"an instance's name and address", "name: web-1\n        addresses: [172.30.0.5,", "name: web-2\n        addresses: [172.30.0.6,", []string{`instance "web-1" of vpc "blue" removed`, `instance "web-2" of vpc "blue" added`}, nil},
		{"an instance's ports", "1024-17407", "1024-17406", []string{`instance "web-1" of vpc "blue" changed`}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(example, c.before, c.after, 1)
			if text == example {
				t.Fatalf("the example has no %q", c.before)
			}
			changed, _, err := Parse([]File{{"f.yaml", []byte(text)}})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.diff, Diff(old, changed)); d != "" {
				t.Errorf("Diff (-want +got):\n%s", d)
			}
			if d := cmp.Diff(c.restartOnly, RestartOnly(old, changed)); d != "" {
				t.Errorf("RestartOnly (-want +got):\n%s", d)
			}
			if Equal(old, changed) != (len(c.diff) == 0) {
				t.Errorf("Equal is %v", Equal(old, changed))
			}
		})
	}
}

// A VPC whose name is new, where another one with the same attachments is gone, has been renamed:
// what differs within it is said as well.
func TestDiffOfRenamedVPC(t *testing.T) {
	data, err := os.ReadFile("testdata/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	parse := func(text string) *Config {
		t.Helper()
		c, _, err := Parse([]File{{"f.yaml", []byte(text)}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	old := strings.Replace(string(data), ", vpc: blue}", "}", 1)
	azure := strings.Replace(old, "- name: blue\n", "- name: azure\n", 1)
	for _, c := range []struct {
		what, text string
		diff       []string
	}{
		{"renamed", azure, []string{`vpc "blue" renamed "azure"`}},
		{"renamed and changed", strings.NewReplacer("per_vpc: 0", "per_vpc: 9", "web-1", "web-2", "drop: true}", "drop: true, from: 172.30.4.0/22}").Replace(azure), []string{
			"sessions changed", `vpc "blue" renamed "azure" and changed`, `route to 100.64.0.0/10 of vpc "blue" removed`,
			`route to 100.64.0.0/10 from 172.30.4.0/22 of vpc "blue" added`, `instance "web-1" of vpc "blue" renamed "web-2"`}},
	} {
		if d := cmp.Diff(c.diff, Diff(parse(old), parse(c.text))); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, d)
		}
	}
	third := "ports:\n  - {name: third, side: inside, device: net_null7, mac: 02:00:00:00:00:09}\n"
	old, azure = strings.Replace(old, "ports:\n", third, 1), strings.Replace(azure, "ports:\n", third, 1)
	elsewhere := strings.Replace(azure, "{port: inside, addresses", "{port: third, addresses", 1)
	if d := cmp.Diff([]string{`vpc "blue" removed`, `vpc "azure" added`}, Diff(parse(old), parse(elsewhere))); d != "" {
		t.Errorf("another one elsewhere (-want +got):\n%s", d)
	}
}

// A change of any one value anywhere in a Config is no longer Equal, and Diff has words for it: a
// field added to the types cannot be forgotten in either.
func TestEveryFieldCounts(t *testing.T) {
	reference := load(t, "testdata/example.yaml")
	c := load(t, "testdata/example.yaml")
	tried := 0
	var change func(path string, v reflect.Value)
	try := func(path string, v reflect.Value, set func()) {
		kept := reflect.New(v.Type()).Elem()
		kept.Set(v)
		set()
		tried++
		if Equal(reference, c) || len(Diff(reference, c)) == 0 {
			t.Errorf("a change of %s goes unnoticed", path)
		}
		v.Set(kept)
	}
	change = func(path string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Struct:
			if v.Type().PkgPath() == "net/netip" {
				if !v.IsZero() {
					try(path, v, func() { v.SetZero() })
				}
				return
			}
			for i := range v.NumField() {
				if r, ok := v.Interface().(Route); ok && r.Target != TargetGateway && v.Type().Field(i).Name == "Gateway" {
					continue // without meaning there
				}
				change(path+"."+v.Type().Field(i).Name, v.Field(i))
			}
		case reflect.Slice:
			for i := range v.Len() {
				change(path, v.Index(i))
			}
			if v.Len() > 0 && strings.Contains(path, ".") { // others refer to top-level objects
				try(path, v, func() { v.Set(v.Slice(0, v.Len()-1)) })
			}
		case reflect.Array:
			change(path, v.Index(0))
		case reflect.String:
			try(path, v, func() { v.SetString(v.String() + "x") })
		case reflect.Int, reflect.Int64:
			try(path, v, func() { // to what is still an index, where it is one
				switch {
				case strings.HasSuffix(path, ".VPC"):
					v.SetInt(-1 - v.Int())
				case v.Int() > 0:
					v.SetInt(v.Int() - 1)
				default:
					v.SetInt(v.Int() + 1)
				}
			})
		case reflect.Bool:
			try(path, v, func() { v.SetBool(!v.Bool()) })
		case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			try(path, v, func() { v.SetUint(v.Uint() ^ 1) })
		default:
			t.Fatalf("%s is a %v, which this test cannot change", path, v.Kind())
		}
	}
	for _, part := range []string{"API", "Metrics", "Log", "Dataplane", "Sessions", "Reload", "Warnings", "Ports", "Pools", "Gateways", "VPCs"} {
		change(part, reflect.ValueOf(c).Elem().FieldByName(part))
	}
	if n := reflect.TypeFor[Config]().NumField(); n != 11 {
		t.Errorf("Config has %d fields; this test knows 11", n)
	}
	if tried < 80 {
		t.Errorf("only %d changes tried", tried)
	}
}
