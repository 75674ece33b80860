// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/config"
	"weir/deploy/lab"
)

func loadConfig(t *testing.T) *config.Config {
	t.Helper()
	cfg, _, err := config.Load("weir.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestScenario holds the table of expectations against the configuration, by the gateway model as a
// reader would work it out: route, pools of its gateway, the guest's addresses in them, the best
// kind.
func TestScenario(t *testing.T) {
	cfg := loadConfig(t)
	for _, r := range scenario {
		t.Run(fmt.Sprintf("%s %s %s %s", r.guest, r.protocol, r.inbound, r.remote), func(t *testing.T) {
			if !slices.Contains(destinations, r.remote) {
				t.Errorf("%s is no destination of the playground", r.remote)
			}
			vpc, guest := find(cfg, r.guest)
			if guest == nil {
				t.Fatal("no such guest")
			}
			if got := modelSources(cfg, vpc, guest, r); got.String() != r.want.String() {
				t.Errorf("by the configuration: %s; the table expects: %s", got, r.want)
			}
		})
	}
}

func find(cfg *config.Config, name string) (*config.VPC, *config.Instance) {
	for i := range cfg.VPCs {
		vpc := &cfg.VPCs[i]
		for j := range vpc.Instances {
			if vpc.Name+"/"+vpc.Instances[j].Name == name {
				return vpc, &vpc.Instances[j]
			}
		}
	}
	return nil, nil
}

func modelSources(cfg *config.Config, vpc *config.VPC, guest *config.Instance, r row) sources {
	ofFamily := func(a netip.Addr) bool { return a.Is4() == r.remote.Is4() }
	if r.inbound != "" {
		called := netip.MustParseAddr(r.inbound)
		if slices.Contains(guest.Floating, called) || slices.Contains(guest.Ephemeral, called) {
			return sources{addresses: []netip.Addr{called}}
		}
		return dropped
	}
	own := guest.Address4
	if !r.remote.Is4() {
		own = guest.Address6
	}
	route, ok := routeOf(vpc, own, r.remote)
	if !ok || route.Target != config.TargetGateway {
		return dropped
	}
	eligible := func(a netip.Addr) bool {
		for _, pool := range cfg.Gateways[route.Gateway].Pools {
			for _, rng := range cfg.Pools[pool].Ranges {
				if ofFamily(a) && rng.Contains(a) {
					return true
				}
			}
		}
		return false
	}
	for _, kind := range [][]netip.Addr{guest.Floating, guest.Ephemeral} {
		var s sources
		for _, a := range kind {
			if eligible(a) {
				s.addresses = append(s.addresses, a)
			}
		}
		if len(s.addresses) > 0 {
			return s
		}
	}
	for _, entry := range guest.SNAT {
		if eligible(entry.Address) {
			return sources{[]netip.Addr{entry.Address}, entry.First, entry.Last}
		}
	}
	return dropped
}

func TestRouteOf(t *testing.T) {
	prefix := netip.MustParsePrefix
	vpc := &config.VPC{Routes: []config.Route{
		{To: prefix("0.0.0.0/0"), Gateway: 0},
		{To: prefix("198.18.0.0/16"), Gateway: 1},
		{To: prefix("198.18.1.0/24"), Gateway: 2, Class: config.Custom},
		{To: prefix("198.18.1.0/24"), Gateway: 3},
		{To: prefix("198.18.2.0/24"), Gateway: 4, From: prefix("172.30.4.0/22")},
		{To: prefix("198.18.2.0/24"), Gateway: 5},
		{To: prefix("198.18.3.0/24"), Gateway: 6, From: prefix("172.30.4.0/22")},
		{To: prefix("198.18.3.0/24"), Gateway: 7, Class: config.Custom},
	}}
	for _, c := range []struct {
		source, destination string
		gateway             int
	}{
		{"172.30.0.5", "192.0.2.1", 0},
		{"172.30.0.5", "198.18.9.1", 1}, // the longer prefix
		{"172.30.0.5", "198.18.1.1", 2}, // custom beats system
		{"172.30.4.5", "198.18.2.1", 4}, // with from beats without
		{"172.30.0.5", "198.18.2.1", 5}, // from does not match
		{"172.30.4.5", "198.18.3.1", 7}, // class comes before from
	} {
		r, ok := routeOf(vpc, netip.MustParseAddr(c.source), netip.MustParseAddr(c.destination))
		if !ok || r.Gateway != c.gateway {
			t.Errorf("%s to %s: gateway %d (found: %v), want %d", c.source, c.destination, r.Gateway, ok, c.gateway)
		}
	}
	if _, ok := routeOf(vpc, netip.MustParseAddr("fd00:1::5"), netip.MustParseAddr("2001:db8::1")); ok {
		t.Error("found a route of the other family")
	}
}

func TestJudge(t *testing.T) {
	seen := func(texts ...string) (flows []flow) {
		for _, s := range texts {
			flows = append(flows, flow{seen: netip.MustParseAddrPort(s)})
		}
		return flows
	}
	lost := flow{err: lab.ErrNoAnswer}
	two := from("192.0.2.2", "192.0.2.3")
	for _, c := range []struct {
		name  string
		want  sources
		flows []flow
		saw   string
		ok    bool
	}{
		{"as wanted", from("192.0.2.1"), seen("192.0.2.1:99"), "192.0.2.1", true},
		{"another address", from("192.0.2.1"), seen("192.0.2.2:99"), "192.0.2.2", false},
		{"a private address", from("192.0.2.1"), seen("172.30.0.5:99"), "172.30.0.5", false},
		{"lost", from("192.0.2.1"), []flow{lost}, "dropped", false},
		{"arrived, answer lost", from("192.0.2.1"), []flow{{netip.MustParseAddrPort("192.0.2.1:99"), lab.ErrNoAnswer}}, "192.0.2.1; 1 of 1 without an answer", false},
		{"dropped as wanted", dropped, []flow{lost}, "dropped", true},
		{"not dropped", dropped, seen("192.0.2.1:99"), "192.0.2.1", false},
		{"arrived though to be dropped", dropped, []flow{{netip.MustParseAddrPort("192.0.2.1:99"), lab.ErrNoAnswer}}, "192.0.2.1; 1 of 1 without an answer", false},
		{"an error is no drop", dropped, []flow{{err: errors.New("refused")}}, "refused", false},
		{"both", two, seen("192.0.2.2:1", "192.0.2.3:2", "192.0.2.3:3"), "192.0.2.2 (1), 192.0.2.3 (2)", true},
		{"only one of both", two, seen("192.0.2.2:1", "192.0.2.2:2"), "192.0.2.2 (2)", false},
		{"one of many lost", two, append(seen("192.0.2.2:1", "192.0.2.3:2"), lost), "192.0.2.2 (1), 192.0.2.3 (1); 1 of 3 without an answer", false},
		{"first port", shared("192.0.2.14", 1024, 2047), seen("192.0.2.14:1024"), "192.0.2.14:1024", true},
		{"last port", shared("192.0.2.14", 1024, 2047), seen("192.0.2.14:2047"), "192.0.2.14:2047", true},
		{"somebody else's port", shared("192.0.2.14", 1024, 2047), seen("192.0.2.14:2048"), "192.0.2.14:2048", false},
	} {
		if got := (row{want: c.want}).judge(c.flows); got.saw != c.saw || got.ok != c.ok {
			t.Errorf("%s: %+v, want {%s %v}", c.name, got, c.saw, c.ok)
		}
	}
}

// What the tests start ends with them.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		lab.Contain()
	}
	os.Exit(m.Run())
}

// testPrefix keeps the tests' namespaces apart from a running playground's.
const testPrefix = "weirqt-"

// TestPlaygroundOverPlainRouting builds the playground with the kernel as a router in weir's place,
// which translates nothing: so the Internet must see private addresses, and every expectation of a
// public one must fail.
func TestPlaygroundOverPlainRouting(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("makes network namespaces: run as root")
	}
	lock, err := net.Listen("unix", "@weir-playground-test")
	if err != nil {
		t.Fatalf("another run of this test: %v", err)
	}
	defer lock.Close()
	if err := lab.RemoveNamed(testPrefix); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.RemoveNamed(testPrefix); err != nil {
			t.Error(err)
		}
		if left, _ := lab.Named(testPrefix); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	cfg := loadConfig(t)
	cfg.VPCs = slices.DeleteFunc(cfg.VPCs, func(v config.VPC) bool { return v.Name != "blue" }) // plain routing has no overlap
	topology, err := build(testPrefix, cfg, destinations)
	if err != nil {
		t.Fatal(err)
	}
	route(t, topology)
	stage, err := newStage(topology)
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Close()

	private4, private6 := from("172.30.0.5"), from("fd00:1::5")
	rows := []row{
		{guest: "blue/web-1", protocol: "ping", remote: web, want: private4},
		{guest: "blue/web-1", protocol: "udp", remote: web, want: private4},
		{guest: "blue/web-1", protocol: "tcp", remote: web, want: private4},
		{guest: "blue/web-1", protocol: "ping", remote: web6, want: private6},
		{guest: "blue/web-1", protocol: "udp", remote: web6, want: private6},
		{guest: "blue/web-1", protocol: "tcp", remote: web6, want: private6},
		{guest: "blue/web-2", protocol: "udp", remote: partner, flows: 8, want: from("172.30.0.6")},
		{guest: "blue/web-1", protocol: "ping", remote: web, inbound: "172.30.0.5", want: private4},
		{guest: "blue/web-1", protocol: "udp", remote: web, inbound: "172.30.0.5", want: private4},
		{guest: "blue/web-1", protocol: "tcp", remote: web6, inbound: "fd00:1::5", want: private6},
		{guest: "blue/web-1", protocol: "ping", remote: shunned, want: dropped},
		{guest: "blue/web-1", protocol: "udp", remote: shunned, want: dropped},
		{guest: "blue/web-1", protocol: "tcp", remote: shunned, want: dropped},
	}
	for i, o := range stage.play(rows) {
		if !o.ok {
			t.Errorf("%+v: saw %s", rows[i], o.saw)
		}
	}
	public := slices.DeleteFunc(slices.Clone(scenario), func(r row) bool {
		return len(r.want.addresses) == 0 || !strings.HasPrefix(r.guest, "blue/") || r.remote == shunned
	})
	for i, o := range stage.play(public) {
		if o.ok {
			t.Errorf("%+v: ok without a gateway that translates; saw %s", public[i], o.saw)
		}
	}
	var table bytes.Buffer
	if got := printTable(&table, topology, rows[:2], []outcome{{"172.30.0.5", true}, {"dropped", false}}); got != 1 {
		t.Errorf("%d rows unexpected, want 1:\n%s", got, &table)
	}
	if text := table.String(); !strings.Contains(text, "0.0.0.0/0 system  default") || !strings.Contains(text, "NOT OK") {
		t.Errorf("table:\n%s", text)
	}
}

// route makes the kernel the router between the VPC and the Internet, and blackholes one
// destination.
func route(t *testing.T, topology *topology) {
	t.Helper()
	err := topology.weir.Do(func() error {
		for _, setting := range []struct{ key, value string }{
			{"ipv6/conf/weirq-blue/accept_dad", "0"}, {"ipv6/conf/weirq-outside/accept_dad", "0"}, // before there are addresses
			{"ipv6/conf/all/disable_ipv6", "0"},
			{"ipv4/ip_forward", "1"}, {"ipv6/conf/all/forwarding", "1"},
		} {
			if err := os.WriteFile("/proc/sys/net/"+setting.key, []byte(setting.value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for link, addresses := range map[string][]string{
		"weirq-blue":    {"172.30.0.1/22", "fd00:1::1/64"},
		"weirq-outside": {"198.51.100.2/24", "2001:db8::2/64"},
	} {
		for _, a := range addresses {
			if err := topology.weir.Address(link, netip.MustParsePrefix(a)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, by := range []string{"198.51.100.1", "2001:db8::1"} {
		if err := topology.weir.DefaultRoute("weirq-outside", netip.MustParseAddr(by)); err != nil {
			t.Fatal(err)
		}
	}
	if err := blackhole(topology.weir, shunned); err != nil {
		t.Fatal(err)
	}
}

func TestMetrics(t *testing.T) {
	const page = `# HELP weir_dropped_packets_total Packets dropped.
# TYPE weir_dropped_packets_total counter
weir_dropped_packets_total{reason="no_route"} 3
weir_dropped_packets_total{reason="route_drop"} 1.2e+01
weir_dropped_packets_total{reason="ttl_expired"} 0
weir_forwarded_packets_total 100
weir_received_packets_total{port="blue"} 70
weir_received_packets_total{port="outside"} 50
weir_sessions{vpc="blue"} 4
weir_sessions_capacity 65536
`
	s := parseMetrics(page)
	if got := s.sum("weir_received_packets_total"); got != 120 {
		t.Errorf("received %v, want 120", got)
	}
	if got, want := s.by("weir_dropped_packets_total", "reason"), "route_drop 12, no_route 3"; got != want {
		t.Errorf("drops %q, want %q", got, want)
	}
	want := "received 120 (+20/s)  forwarded 100  punted 0  dropped 15 (route_drop 12, no_route 3)  sessions 4 (blue 4)"
	if got := s.line(samples{`weir_received_packets_total{port="blue"}`: 100}); got != want {
		t.Errorf("line %q, want %q", got, want)
	}
}

// TestCapture decodes the captures with another library's eyes: every packet of the story, in its
// file, whole.
func TestCapture(t *testing.T) {
	dir := t.TempDir()
	if err := capture(dir); err != nil {
		t.Fatal(err)
	}
	cfg := loadConfig(t)
	want := map[string]int{}
	for _, p := range story {
		want[p.port]++
	}
	for port, packets := range want {
		if !slices.ContainsFunc(cfg.Ports, func(p config.Port) bool { return p.Name == port }) {
			t.Errorf("port %s is not in weir.yaml", port)
		}
		b, err := os.ReadFile(filepath.Join(dir, port+".pcap"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b[:24], pcapHeader()) {
			t.Errorf("%s: header %x", port, b[:24])
		}
		frames := 0
		for b = b[24:]; len(b) > 0; frames++ {
			length := int(b[8]) | int(b[9])<<8
			p := gopacket.NewPacket(b[16:16+length], layers.LayerTypeEthernet, gopacket.Default)
			if e := p.ErrorLayer(); e != nil {
				t.Errorf("%s: frame %d: %v", port, frames, e.Error())
			}
			if transport, ok := p.TransportLayer().(interface {
				SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
			}); ok {
				if err := transport.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
					t.Fatal(err)
				}
			}
			if err, bad := p.VerifyChecksums(); err != nil || len(bad) > 0 {
				t.Errorf("%s: frame %d: bad checksums %v (%v)", port, frames, bad, err)
			}
			b = b[16+length:]
		}
		if frames != packets {
			t.Errorf("%s: %d frames, want %d", port, frames, packets)
		}
	}
}

func TestUsage(t *testing.T) {
	var out bytes.Buffer
	if err := command(t.Context(), []string{"nonsense"}, &out); err == nil || !strings.Contains(err.Error(), "capture DIR") {
		t.Errorf("got %v, want an error that names the commands", err)
	}
}

func blackhole(n *lab.Namespace, a netip.Addr) error {
	return n.Links.RouteAdd(&netlink.Route{
		Dst:  &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
		Type: unix.RTN_BLACKHOLE,
	})
}
