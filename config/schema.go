// SPDX-License-Identifier: Apache-2.0

package config

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"gopkg.in/yaml.v3"
)

// This file is the schema: every key, its type, and which of them this version does not support
// yet. Objects that others refer to are kept as written, each value with its place, for validate.go
// and its companions.

// document is what a file says, or what all files say, merged: lists in the order of the files.
type document struct {
	first     *spot            // the beginning of the first file
	config    Config           // the sections that refer to nothing, with defaults
	sessions  translationText  // the translation keys of that section
	sections  map[string]*spot // where each of them is
	keys      map[string]*spot // where each key of a file is, but version
	includes  []includeText
	ports     []portText
	pools     []poolText
	gateways  []gatewayText
	vpcs      []vpcText
	instances []instanceText // those listed outside their VPC
}

func newDocument() *document {
	return &document{config: DefaultConfig, sections: map[string]*spot{}, keys: map[string]*spot{}}
}

type portText struct {
	spot           *spot
	name           at[string]
	device         at[string]
	side           at[Side]
	vlan           at[VLAN]
	pcp            at[PCP]
	mtu            at[int]
	mac            at[MAC]
	addresses      []at[netip.Prefix]
	nextHops       []nextHopText
	privateSources []at[netip.Prefix]
	answer         at[Answer]
}

type nextHopText struct {
	address at[netip.Addr]
	mac     at[MAC]
}

type poolText struct {
	spot        *spot
	name        at[string]
	ranges      []at[Range]
	ports       []at[string]
	translation translationText
}

type translationText struct {
	mapping   at[Mapping]
	filtering at[Filtering]
	fragments at[Fragments]
	refresh   at[InboundRefresh]
}

type gatewayText struct {
	spot      *spot
	name      at[string]
	id        at[ID]
	pools     []at[string]
	addresses []at[netip.Addr]
	vpc       at[string]
}

type limitsText struct{ perInstance, perVPC at[int] }

type vpcText struct {
	spot      *spot
	name      at[string]
	attach    []attachmentText
	subnets   []at[netip.Prefix]
	routes    []routeText
	instances []instanceText
	limits    limitsText
	weight    at[int]
}

type attachmentText struct {
	spot      *spot
	port      at[string]
	vlan      at[VLAN]
	pcp       at[PCP]
	encap     at[Encap]
	vni       at[int]
	peers     []at[netip.Prefix]
	mac       at[MAC]
	udpPort   at[int]
	dscp      at[DSCP]
	checksum  at[bool]
	addresses []at[netip.Prefix]
	nextHops  []nextHopText
}

type routeText struct {
	spot    *spot
	to      at[netip.Prefix]
	from    at[netip.Prefix]
	class   at[Class]
	drop    at[bool]
	gateway at[string]
	address at[netip.Addr]
	subnet  at[netip.Prefix]

	translate at[bool]
}

type instanceText struct {
	spot      *spot
	vpc       at[string] // only for an instance listed outside its VPC
	name      at[string]
	addresses []at[netip.Addr]
	mac       at[MAC]
	hosts     []at[netip.Addr]
	transit   []at[netip.Prefix]
	floating  []at[netip.Addr]
	ephemeral []at[netip.Addr]
	snat      []snatText
	attached  []at[netip.Prefix]
	limits    limitsText
}

type snatText struct {
	spot     *spot
	address  at[netip.Addr]
	ports    at[ports]
	forwards []forwardText
}

type forwardText struct {
	spot     *spot
	protocol at[Protocol]
	port     at[int]
	toPort   at[int]
}

// The keys of each object, in the order in which messages list them.
var (
	rootKeys       = []string{"version", "include", "api", "metrics", "log", "dataplane", "ports", "pools", "gateways", "sessions", "reload", "warnings", "vpcs", "instances"}
	apiKeys        = []string{"listen", "socket"}
	metricsKeys    = []string{"tenants"}
	logKeys        = []string{"level", "format"}
	dataplaneKeys  = []string{"workers", "memory", "idle", "sessions", "vfio_intr", "iova"}
	portKeys       = []string{"name", "device", "side", "vlan", "pcp", "mtu", "mac", "addresses", "next_hops", "private_sources", "answer"}
	nextHopKeys    = []string{"address", "mac"}
	poolKeys       = []string{"name", "ranges", "ports", "sessions"}
	gatewayKeys    = []string{"name", "id", "pools", "addresses", "vpc"}
	sessionsKeys   = []string{"spread", "on_move", "drain_timeout", "mapping", "filtering", "inbound_refresh", "port_rest", "mss_clamp", "unknown_tcp", "fragments", "allow_udp6_zero", "limits", "timeouts", "rfc_unsafe"}
	poolSessions   = []string{"mapping", "filtering", "inbound_refresh", "fragments"}
	limitsKeys     = []string{"per_instance", "per_vpc"}
	instanceLimits = []string{"per_instance"}
	timeoutsKeys   = []string{"tcp_partially_open", "tcp_established", "tcp_closing", "udp", "udp_ports", "icmp", "other"}
	warningsKeys   = []string{"ignore"}
	reloadKeys     = []string{"max_shrink"}
	vpcKeys        = []string{"name", "attach", "subnets", "routes", "instances", "limits", "weight"}
	attachKeys     = []string{"port", "vlan", "pcp", "encap", "vni", "peers", "mac", "udp_port", "dscp", "udp_checksum", "addresses", "next_hops"}
	routeKeys      = []string{"to", "from", "class", "drop", "gateway", "address", "subnet", "translate"}
	instanceKeys   = []string{"name", "addresses", "mac", "host", "transit", "external", "limits"}
	placedKeys     = append([]string{"vpc"}, instanceKeys...) // of instances outside their VPC
	externalKeys   = []string{"floating", "ephemeral", "snat", "attached"}
	snatKeys       = []string{"address", "ports", "forward"}
	forwardKeys    = []string{"protocol", "port", "to_port"}
	addressKeys    = []string{"address"}
)

var (
	parseIdle    = oneOf(choice[Idle]{"sleep", IdleSleep}, choice[Idle]{"busy", IdleBusy})
	parseSide    = oneOf(choice[Side]{"inside", Inside}, choice[Side]{"outside", Outside})
	parseAnswer  = oneOf(choice[Answer]{"on-link", AnswerOnLink}, choice[Answer]{"all", AnswerAll}, choice[Answer]{"none", AnswerNone})
	parseSpread  = oneOf(choice[Spread]{"flow", SpreadFlow}, choice[Spread]{"endpoint", SpreadEndpoint}, choice[Spread]{"instance", SpreadInstance})
	parseTCP     = oneOf(choice[UnknownTCP]{"drop", UnknownTCPDrop}, choice[UnknownTCP]{"reset", UnknownTCPReset})
	parseTenants = oneOf(choice[Tenants]{"names", TenantNames}, choice[Tenants]{"ids", TenantIDs}, choice[Tenants]{"off", TenantsOff})
	parseClass   = oneOf(choice[Class]{"custom", Custom}, choice[Class]{"system", System})
	parseMoved   = oneOf(choice[OnMove]{"keep", OnMoveKeep}, choice[OnMove]{"drain", OnMoveDrain}, choice[OnMove]{"cut", OnMoveCut})
	parseMapping = oneOf(choice[Mapping]{"endpoint-independent", EndpointIndependentMapping}, choice[Mapping]{"address-and-port-dependent", AddressAndPortDependentMapping})
	parseFilter  = oneOf(choice[Filtering]{"endpoint-independent", EndpointIndependentFiltering}, choice[Filtering]{"address-dependent", AddressDependentFiltering},
		choice[Filtering]{"address-and-port-dependent", AddressAndPortDependentFiltering})
	parseProtocol = oneOf(choice[Protocol]{"tcp", TCP}, choice[Protocol]{"udp", UDP})
	parseRefresh  = oneOf(choice[InboundRefresh]{"off", RefreshOff}, choice[InboundRefresh]{"on", RefreshOn})
	parsePieces   = oneOf(choice[Fragments]{"track", TrackFragments}, choice[Fragments]{"drop", DropFragments})
	parseClamp    = oneOf(choice[int]{"auto", MSSClampAuto}, choice[int]{"off", MSSClampOff})
	parseEncap    = oneOf(choice[Encap]{"vxlan", VXLAN}, choice[Encap]{"geneve", Geneve})
	parseZero     = oneOf(choice[bool]{"full", false}, choice[bool]{"zero", true})
)

// read returns what a file says. False: nothing of it could be read.
func read(ctx context.Context, f File) (reader, bool) {
	r := reader{doc: newDocument(), ctx: ctx}
	if len(f.Data) >= splitFrom {
		r.lists = map[string][]piece{}
		if whole := r.file(f); !r.torn {
			return r, whole
		}
		r = reader{doc: newDocument(), ctx: ctx}
	}
	whole := r.file(f)
	return r, whole
}

// file reads one file into the document. False: nothing of it could be read.
func (r *reader) file(f File) bool {
	root, ok := r.parseDocument(f)
	if !ok {
		return false
	}
	for key, v := range r.object(root, rootKeys) {
		if key != "version" {
			r.doc.keys[key] = v.spot
		}
		switch key {
		case "include":
			r.include(v)
		case "api", "metrics", "log", "dataplane", "sessions", "reload", "warnings":
			r.section(key, v)
		case "ports":
			for e := range r.list(v, "ports") {
				r.doc.ports = append(r.doc.ports, r.port(e))
			}
		case "pools":
			for e := range r.list(v, "pools") {
				r.doc.pools = append(r.doc.pools, r.pool(e))
			}
		case "gateways":
			for e := range r.list(v, "gateways") {
				r.doc.gateways = append(r.doc.gateways, r.gateway(e))
			}
		case "vpcs":
			for e := range r.list(v, "VPCs") {
				r.doc.vpcs = append(r.doc.vpcs, r.vpc(e))
			}
		case "instances":
			for e := range r.list(v, "instances") {
				r.doc.instances = append(r.doc.instances, r.instance(e, placedKeys))
			}
		}
	}
	// What an anchor, an alias, a tag or nothing stands for is missing: no reference to it is
	// judged.
	return !r.missing
}

// gone are keys of before, by their path, and what is there instead.
var gone = map[string]string{
	"dataplane.eal_args": "arguments for EAL could run any program text in the data plane, and are no longer a configuration's; " +
		"expected vfio_intr or iova, or weir-dataplane --eal-arg",
}

// sectionKeys are the keys that only one file may have.
var sectionKeys = []string{"api", "metrics", "log", "dataplane", "sessions", "reload", "warnings"}

// section reads one of them.
func (r *reader) section(key string, v value) {
	r.doc.sections[key] = v.spot
	switch key {
	case "api":
		r.api(v)
	case "metrics":
		for _, v := range r.object(v, metricsKeys) {
			r.doc.config.Metrics.Tenants = text(r, v, parseTenants).value
		}
	case "log":
		r.log(v)
	case "dataplane":
		r.dataplane(v)
	case "sessions":
		r.sessions(v)
	case "reload":
		r.reload(v)
	case "warnings":
		for _, v := range r.object(v, warningsKeys) {
			r.doc.config.Warnings.Ignore = values(texts(r, v, "warnings", parseIgnored))
			slices.Sort(r.doc.config.Warnings.Ignore)
		}
	}
}

func (r *reader) api(v value) {
	for key, v := range r.object(v, apiKeys) {
		switch key {
		case "listen":
			r.doc.config.API.Listen = text(r, v, parseListen).value
		case "socket":
			r.doc.config.API.Socket = text(r, v, parseSocket).value
		}
	}
}

func (r *reader) log(v value) {
	c := &r.doc.config.Log
	for key, v := range r.object(v, logKeys) {
		switch key {
		case "level":
			c.Level = text(r, v, words("debug", "info", "warn", "error")).value
		case "format":
			c.Format = text(r, v, words("text", "json")).value
		}
	}
}

func (r *reader) dataplane(v value) {
	c := &r.doc.config.Dataplane
	for key, v := range r.object(v, dataplaneKeys) {
		switch key {
		case "workers":
			c.Workers = r.workers(v)
		case "memory":
			c.Memory = text(r, v, parseSize).value
		case "idle":
			c.Idle = text(r, v, parseIdle).value
		case "sessions":
			c.Sessions = r.integer(v, MinSessions, MaxSessions).value
		case "vfio_intr":
			c.VFIOIntr = text(r, v, words("auto", "legacy", "msi", "msix")).value
		case "iova":
			c.IOVA = text(r, v, words("auto", "pa", "va")).value
		}
	}
}

func (r *reader) workers(v value) []int {
	const lastCore = 1023
	var cores []int
	for e := range r.list(v, "logical cores") {
		core := r.integer(e, 0, lastCore)
		switch {
		case !core.ok:
		case slices.Contains(cores, core.value):
			r.faults.add(e.spot, "core %d is already in the list; expected each core once", core.value)
		default:
			cores = append(cores, core.value)
		}
	}
	switch n := len(v.node.Content); {
	case v.node.Kind != yaml.SequenceNode:
	case n == 0:
		r.faults.add(v.spot, "no core is listed; expected at least one, such as [1]")
	case n > MaxWorkers:
		r.faults.add(v.spot, "%d cores are listed; expected at most %d", n, MaxWorkers)
	}
	return cores
}

// sessions reads the defaults of session handling. Timeouts are read last, because rfc_unsafe lifts
// their floors and may come after them.
func (r *reader) sessions(v value) {
	c := &r.doc.config.Sessions
	var times value
	unsafe := false
	for key, v := range r.object(v, sessionsKeys) {
		switch key {
		case "spread":
			c.Spread = text(r, v, parseSpread).value
		case "on_move":
			c.OnMove = text(r, v, parseMoved).value
		case "drain_timeout":
			if d := r.duration(v); d.ok {
				c.DrainTimeout = d.value
			}
		case "mapping", "filtering", "inbound_refresh", "fragments":
			r.translation(&r.doc.sessions, key, v)
		case "port_rest":
			if d := r.duration(v); d.ok {
				c.PortRest = d.value
			}
		case "mss_clamp":
			c.MSSClamp = r.clamp(v)
		case "unknown_tcp":
			c.UnknownTCP = text(r, v, parseTCP).value
		case "allow_udp6_zero":
			c.AllowUDP6Zero = r.zeroPorts(v)
		case "limits":
			l := r.limits(v, limitsKeys)
			c.PerInstance, c.PerVPC = l.perInstance.or(c.PerInstance), l.perVPC.or(c.PerVPC)
		case "timeouts":
			times = v
		case "rfc_unsafe":
			unsafe = r.truth(v).value
		}
	}
	if times.node != nil {
		r.timeouts(times, unsafe)
	}
}

// translation reads one key of how sessions are translated.
func (r *reader) translation(t *translationText, key string, v value) {
	switch key {
	case "mapping":
		t.mapping = text(r, v, parseMapping)
	case "filtering":
		t.filtering = text(r, v, parseFilter)
	case "fragments":
		t.fragments = text(r, v, parsePieces)
	case "inbound_refresh":
		t.refresh = text(r, v, parseRefresh)
	}
}

// minMSS is the least segment size that clamping may ask for: what IPv4's least datagram leaves
// (RFC 879 §3).
const minMSS = 536

// clamp reads a word or a segment size in bytes.
func (r *reader) clamp(v value) int {
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!int" {
		return r.integer(v, minMSS, MaxMTU).value
	}
	return text(r, v, parseClamp).value
}

// duration reads a duration; a plain 0 is one too.
func (r *reader) duration(v value) at[time.Duration] {
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!int" && v.node.Value == "0" {
		return at[time.Duration]{0, v.spot, true}
	}
	return text(r, v, parseDuration)
}

// timeoutRules are the least times that the RFCs allow, and what weir needs where they are silent.
var timeoutRules = map[string]struct {
	field func(*Timeouts) *time.Duration
	floor time.Duration
	rule  string
}{
	"tcp_partially_open": {func(t *Timeouts) *time.Duration { return &t.TCPPartiallyOpen }, 4 * time.Minute, "RFC 5382 REQ-5"},
	"tcp_established":    {func(t *Timeouts) *time.Duration { return &t.TCPEstablished }, 2*time.Hour + 4*time.Minute, "RFC 5382 REQ-5"},
	"tcp_closing":        {func(t *Timeouts) *time.Duration { return &t.TCPClosing }, 4 * time.Minute, "RFC 7857 section 2.1"},
	"udp":                {func(t *Timeouts) *time.Duration { return &t.UDP }, 2 * time.Minute, "RFC 4787 REQ-5"},
	"icmp":               {func(t *Timeouts) *time.Duration { return &t.ICMP }, time.Minute, "RFC 5508 REQ-2"},
	"other":              {func(t *Timeouts) *time.Duration { return &t.Other }, minTimeout, ""},
}

// TimeoutFloors returns the least times that the RFCs let a NAT wait. For what they say nothing of
// there is none.
func TimeoutFloors() (t Timeouts) {
	for key, rule := range timeoutRules {
		if key != "other" {
			*rule.field(&t) = rule.floor
		}
	}
	return t
}

// minTimeout is the least idle time of a session, rfc_unsafe or not.
const minTimeout = time.Second

func (r *reader) timeouts(v value, unsafe bool) {
	for key, v := range r.object(v, timeoutsKeys) {
		if key == "udp_ports" {
			r.portTimeouts(v, unsafe)
			continue
		}
		rule := timeoutRules[key]
		if d := r.timeout(v, rule.floor, rule.rule, unsafe); d.ok {
			*rule.field(&r.doc.config.Sessions.Timeouts) = d.value
		}
	}
}

// timeout reads an idle time. A rule sets its floor.
func (r *reader) timeout(v value, floor time.Duration, rule string, unsafe bool) at[time.Duration] {
	d := text(r, v, parseDuration)
	switch {
	case !d.ok:
	case d.value < minTimeout:
		r.faults.add(v.spot, "%v is too short; expected at least %v", d.value, minTimeout)
		d.ok = false
	case d.value < floor && !unsafe:
		r.faults.add(v.spot, "%v is below the floor of %s; expected at least %v, or rfc_unsafe: true", d.value, rule, floor)
		d.ok = false
	}
	return d
}

// zeroPorts reads the ports of UDP that needs no checksum.
func (r *reader) zeroPorts(v value) (list []uint16) {
	for e := range r.list(v, "UDP ports") {
		port := r.integer(e, 1, 65535)
		switch {
		case !port.ok:
		case slices.Contains(list, uint16(port.value)):
			r.faults.add(e.spot, "port %d stands already in the list; expected it once", port.value)
		default:
			list = append(list, uint16(port.value))
		}
	}
	if len(list) > MaxZeroPorts {
		r.faults.add(v.spot, "there are %d UDP ports; expected at most %d", len(list), MaxZeroPorts)
	}
	slices.Sort(list)
	return list
}

// portTimeouts reads a mapping of remote UDP ports to timeouts. Those of well-known ports may be
// below the floor (RFC 4787 REQ-5a).
func (r *reader) portTimeouts(v value, unsafe bool) {
	if v.node.Kind != yaml.MappingNode {
		r.faults.add(v.spot, "found %s; expected a mapping of UDP ports to durations", kindOf(v.node))
		return
	}
	if n := len(v.node.Content) / 2; n > MaxUDPPorts {
		r.faults.add(v.spot, "there are %d UDP ports; expected at most %d", n, MaxUDPPorts)
		return
	}
	var list []PortTimeout
	seen := map[int]*spot{}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key := value{v.node.Content[i], &spot{file: v.spot.file, line: v.node.Content[i].Line, up: v.spot, key: clip(v.node.Content[i].Value)}}
		if !r.plain(key) {
			continue
		}
		port := r.integer(key, 1, 65535)
		if !port.ok {
			continue
		}
		if s := seen[port.value]; s != nil {
			r.faults.add(key.spot, "the port is already set at %v; expected it once", s)
			continue
		}
		seen[port.value] = key.spot
		rule := timeoutRules["udp"]
		if port.value < 1024 {
			rule.floor = minTimeout
		}
		child := value{v.node.Content[i+1], key.spot}
		if !r.plain(child) {
			continue
		}
		if d := r.timeout(child, rule.floor, rule.rule, unsafe); d.ok {
			list = append(list, PortTimeout{uint16(port.value), d.value})
		}
	}
	slices.SortFunc(list, func(a, b PortTimeout) int { return int(a.Port) - int(b.Port) })
	r.doc.config.Sessions.Timeouts.UDPPorts = list
}

func (r *reader) limits(v value, keys []string) (l limitsText) {
	for key, v := range r.object(v, keys) {
		switch key {
		case "per_instance":
			l.perInstance = r.integer(v, 0, MaxSessions)
		case "per_vpc":
			l.perVPC = r.integer(v, 0, MaxSessions)
		}
	}
	return l
}

func (r *reader) reload(v value) {
	for key, v := range r.object(v, reloadKeys) {
		switch key {
		case "max_shrink":
			r.doc.config.Reload.MaxShrink = text(r, v, parsePercent).value
		}
	}
}

func (r *reader) port(v value) portText {
	p := portText{spot: v.spot}
	for key, v := range r.object(v, portKeys) {
		switch key {
		case "name":
			p.name = text(r, v, parseName)
		case "device":
			p.device = text(r, v, parseDevice)
		case "side":
			p.side = text(r, v, parseSide)
		case "vlan":
			p.vlan = r.vlan(v)
		case "pcp":
			p.pcp = r.pcp(v)
		case "mtu":
			p.mtu = r.integer(v, 68, MaxMTU) // RFC 791
		case "mac":
			p.mac = text(r, v, parseMAC)
		case "addresses":
			p.addresses = texts(r, v, "addresses with their prefix lengths", parseInterface)
		case "next_hops":
			p.nextHops = r.nextHops(v)
		case "private_sources":
			p.privateSources = texts(r, v, "prefixes", parsePrefix)
		case "answer":
			p.answer = text(r, v, parseAnswer)
		}
	}
	require(r, v, p.name, "name")
	require(r, v, p.device, "device")
	require(r, v, p.side, "side")
	return p
}

// vlan reads a VLAN ID, 0 for none, or a pair of them.
func (r *reader) vlan(v value) at[VLAN] {
	if v.node.Kind != yaml.SequenceNode {
		id := r.integer(v, 0, 4094)
		return at[VLAN]{VLAN{Outer: uint16(id.value)}, v.spot, id.ok}
	}
	var ids []uint16
	good := true
	for e := range r.list(v, "VLANs") {
		id := r.integer(e, 1, 4094)
		ids, good = append(ids, uint16(id.value)), good && id.ok
	}
	if len(ids) != 2 {
		r.faults.add(v.spot, "found %d VLANs; expected [outer, inner]", len(ids))
		return at[VLAN]{spot: v.spot}
	}
	return at[VLAN]{VLAN{ids[0], ids[1]}, v.spot, good}
}

// pcp reads a priority, or keep.
func (r *reader) pcp(v value) at[PCP] {
	if v.node.Value == "keep" {
		return at[PCP]{KeepPCP, v.spot, true}
	}
	n := r.integer(v, 0, 7)
	return at[PCP]{PCP(n.value + 1), v.spot, n.ok}
}

// dscp reads a DSCP, or copy.
func (r *reader) dscp(v value) at[DSCP] {
	if v.node.Value == "copy" {
		return at[DSCP]{CopyDSCP, v.spot, true}
	}
	n := r.integer(v, 0, 63)
	return at[DSCP]{DSCP(n.value), v.spot, n.ok}
}

// hosts reads an address or a list of them.
func (r *reader) hosts(v value) []at[netip.Addr] {
	if v.node.Kind == yaml.SequenceNode {
		return texts(r, v, "addresses", parseAddress)
	}
	return []at[netip.Addr]{text(r, v, parseAddress)}
}

// nextHops reads a list of addresses, or of {address, mac}.
func (r *reader) nextHops(v value) []nextHopText {
	var hops []nextHopText
	for e := range r.list(v, "next hops") {
		if e.node.Kind != yaml.MappingNode {
			hops = append(hops, nextHopText{address: text(r, e, parseAddress)})
			continue
		}
		var hop nextHopText
		for key, v := range r.object(e, nextHopKeys) {
			switch key {
			case "address":
				hop.address = text(r, v, parseAddress)
			case "mac":
				hop.mac = text(r, v, parseMAC)
			}
		}
		require(r, e, hop.address, "address")
		hops = append(hops, hop)
	}
	return hops
}

func (r *reader) pool(v value) poolText {
	p := poolText{spot: v.spot}
	for key, v := range r.object(v, poolKeys) {
		switch key {
		case "name":
			p.name = text(r, v, parseName)
		case "ranges":
			p.ranges = texts(r, v, "ranges", parseRange)
			if v.node.Kind == yaml.SequenceNode && len(v.node.Content) == 0 {
				r.faults.add(v.spot, "the pool is empty; expected at least one range")
			}
		case "ports":
			p.ports = texts(r, v, "outside ports", parseName)
		case "sessions":
			for key, v := range r.object(v, poolSessions) {
				r.translation(&p.translation, key, v)
			}
		}
	}
	require(r, v, p.name, "name")
	if p.ranges == nil {
		p.ranges = []at[Range]{{}} // missing or faulty: what the pool holds is not known
		r.requireKey(v, "ranges")
	}
	return p
}

func (r *reader) gateway(v value) gatewayText {
	g := gatewayText{spot: v.spot}
	for key, v := range r.object(v, gatewayKeys) {
		switch key {
		case "name":
			g.name = text(r, v, parseGatewayName)
		case "id":
			g.id = text(r, v, parseID)
		case "pools":
			g.pools = texts(r, v, "pools", parseName)
		case "addresses":
			g.addresses = texts(r, v, "addresses", parseAddress)
		case "vpc":
			g.vpc = text(r, v, parseName)
		}
	}
	require(r, v, g.name, "name")
	require(r, v, g.id, "id")
	return g
}

func (r *reader) vpc(v value) vpcText {
	p := vpcText{spot: v.spot}
	for key, v := range r.object(v, vpcKeys) {
		switch key {
		case "name":
			p.name = text(r, v, parseName)
		case "attach":
			for e := range r.list(v, "attachments") {
				p.attach = append(p.attach, r.attachment(e))
			}
		case "subnets":
			p.subnets = texts(r, v, "subnets", parseNetwork)
		case "routes":
			for e := range r.list(v, "routes") {
				p.routes = append(p.routes, r.route(e))
			}
		case "instances":
			for e := range r.list(v, "instances") {
				p.instances = append(p.instances, r.instance(e, instanceKeys))
			}
		case "limits":
			p.limits = r.limits(v, limitsKeys)
		case "weight":
			p.weight = r.integer(v, 1, MaxWeight)
		}
	}
	require(r, v, p.name, "name")
	return p
}

func (r *reader) attachment(v value) attachmentText {
	a := attachmentText{spot: v.spot}
	for key, v := range r.object(v, attachKeys) {
		switch key {
		case "port":
			a.port = text(r, v, parseName)
		case "vlan":
			a.vlan = r.vlan(v)
		case "pcp":
			a.pcp = r.pcp(v)
		case "encap":
			a.encap = text(r, v, parseEncap)
		case "vni":
			a.vni = r.integer(v, 0, 1<<24-1)
		case "peers":
			a.peers = texts(r, v, "prefixes of tunnel endpoints", parseNetwork)
		case "mac":
			a.mac = text(r, v, parseMAC)
		case "udp_port":
			a.udpPort = r.integer(v, 1, 65535)
		case "dscp":
			a.dscp = r.dscp(v)
		case "udp_checksum":
			a.checksum = text(r, v, parseZero)
		case "addresses":
			a.addresses = texts(r, v, "addresses with their prefix lengths", parseInterface)
		case "next_hops":
			a.nextHops = r.nextHops(v)
		}
	}
	require(r, v, a.port, "port")
	return a
}

func (r *reader) route(v value) routeText {
	t := routeText{spot: v.spot}
	for key, v := range r.object(v, routeKeys) {
		switch key {
		case "to":
			t.to = text(r, v, parsePrefix)
		case "from":
			t.from = text(r, v, parsePrefix)
		case "class":
			t.class = text(r, v, parseClass)
		case "drop":
			t.drop = r.truth(v)
			if t.drop.ok && !t.drop.value {
				r.faults.add(v.spot, "false is not accepted; expected true, or another target")
			}
		case "gateway":
			t.gateway = text(r, v, anything)
		case "address":
			t.address = text(r, v, parseAddress)
		case "subnet":
			t.subnet = text(r, v, parsePrefix)
		case "translate":
			t.translate = r.truth(v)
		}
	}
	require(r, v, t.to, "to")
	return t
}

// anything accepts any text; a later check judges it.
func anything(s string) (string, error) { return s, nil }

func (r *reader) instance(v value, keys []string) instanceText {
	i := instanceText{spot: v.spot}
	for key, v := range r.object(v, keys) {
		switch key {
		case "vpc":
			i.vpc = text(r, v, parseName)
		case "name":
			i.name = text(r, v, parseName)
		case "addresses":
			i.addresses = texts(r, v, "addresses", parseAddress)
		case "mac":
			i.mac = text(r, v, parseMAC)
		case "host":
			i.hosts = r.hosts(v)
		case "transit":
			i.transit = texts(r, v, "prefixes", parseNetwork)
		case "external":
			r.external(v, &i)
		case "limits":
			i.limits = r.limits(v, instanceLimits)
		}
	}
	require(r, v, i.name, "name")
	if len(keys) == len(placedKeys) {
		require(r, v, i.vpc, "vpc")
	}
	return i
}

func (r *reader) external(v value, i *instanceText) {
	for key, v := range r.object(v, externalKeys) {
		switch key {
		case "floating":
			i.floating = r.externalAddresses(v)
		case "ephemeral":
			i.ephemeral = r.externalAddresses(v)
		case "snat":
			for e := range r.list(v, "{address, ports, forward}") {
				i.snat = append(i.snat, r.snat(e))
			}
		case "attached":
			i.attached = texts(r, v, "prefixes", parseNetwork)
		}
	}
}

// externalAddresses reads a list of addresses, or of {address}.
func (r *reader) externalAddresses(v value) []at[netip.Addr] {
	var all []at[netip.Addr]
	for e := range r.list(v, "addresses") {
		if e.node.Kind != yaml.MappingNode {
			all = append(all, text(r, e, parseAddress))
			continue
		}
		var a at[netip.Addr]
		for _, v := range r.object(e, addressKeys) {
			a = text(r, v, parseAddress)
		}
		require(r, e, a, "address")
		all = append(all, a)
	}
	return all
}

func (r *reader) snat(v value) snatText {
	s := snatText{spot: v.spot}
	for key, v := range r.object(v, snatKeys) {
		switch key {
		case "address":
			s.address = text(r, v, parseAddress)
		case "ports":
			s.ports = text(r, v, parsePorts)
		case "forward":
			for e := range r.list(v, "{protocol, port, to_port}") {
				s.forwards = append(s.forwards, r.forward(e))
			}
		}
	}
	require(r, v, s.address, "address")
	require(r, v, s.ports, "ports")
	return s
}

func (r *reader) forward(v value) forwardText {
	f := forwardText{spot: v.spot}
	for key, v := range r.object(v, forwardKeys) {
		switch key {
		case "protocol":
			f.protocol = text(r, v, parseProtocol)
		case "port":
			f.port = r.integer(v, 1, 65535)
		case "to_port":
			f.toPort = r.integer(v, 1, 65535)
		}
	}
	require(r, v, f.protocol, "protocol")
	require(r, v, f.port, "port")
	if !f.toPort.given() {
		f.toPort = f.port
	}
	return f
}

// require reports a key that an object lacks.
func require[T any](r *reader, v value, a at[T], key string) {
	if !a.given() {
		r.requireKey(v, key)
	}
}

// requireKey reports a missing key of a mapping. A value that is not a mapping was reported before.
func (r *reader) requireKey(v value, key string) {
	if v.node.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i < len(v.node.Content); i += 2 {
		if v.node.Content[i].Value == key {
			return
		}
	}
	r.faults.add(v.spot, "has no %s; expected one", key)
}

// values returns the well-formed values of a list.
func values[T any](list []at[T]) []T {
	var all []T
	for _, a := range list {
		if a.ok {
			all = append(all, a.value)
		}
	}
	return all
}
