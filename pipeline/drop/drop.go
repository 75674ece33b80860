// SPDX-License-Identifier: Apache-2.0

// Package drop has the reasons for which packets are dropped. Code, counters, logs and the
// documentation spell a reason alike and explain it in the same words, because all of them take
// both from the one table here: docs/drops.md is made from it.
package drop

// Reason says why a packet was dropped. Each has a counter.
type Reason uint8

// The reasons, in the order in which a packet can meet them. The table below explains them.
const (
	Pass Reason = iota // not dropped

	// classify
	ShortFrame
	Truncated
	Oversized
	NotOurMAC
	BadEtherType
	VLANTag
	TunnelChecksum
	TunnelFragment
	TunnelLength
	TunnelVersion
	TunnelControl
	TunnelOptions
	TunnelCritical
	TunnelVNI
	TunnelPeer
	TunnelInner
	TunnelInnerTag
	TunnelECN
	BadIPHeader
	BadIPChecksum
	BadExtension
	Fragment
	BadFragment
	FragmentOverlap
	FragmentLimit
	FragmentTimeout
	BadTransport
	Martian
	TTLExceeded
	PuntLimited
	NoService
	ICMPUnsupported
	BadICMP
	ICMPUnrelated

	// inside
	AntiSpoof
	SpoofedAttachment
	SpoofedMAC
	SpoofedHost
	NoRoute
	RouteDrop
	NoEligible
	PublicSource
	PrivateDestination
	Untranslatable
	SNATProtocol
	NoSession
	LimitInstance
	LimitVPC
	FairShare
	TableFull
	PortsExhausted

	// outside
	UnknownDestination
	OwnSource
	NoPartner
	Unsolicited
	Filtered
	TCPReset

	// transmit
	TooBig
	NoHeadroom
	NoNextHop
	NeighborUnresolved
	TxFull
	HandoffFull
	Restart

	NumReasons
)

// Class groups reasons for alerts and dashboards.
type Class uint8

// The classes.
const (
	Malformed Class = iota + 1 // a packet that no correct sender makes
	Spoofed                    // an address or a sequence number that is not the sender's
	Unwanted                   // nobody here asked for it
	Policy                     // the configuration says so
	Exhausted                  // a limit, a table or a range of ports is full
	Delivery                   // no way on from here
	Overload                   // a worker, a ring or a device cannot keep up
)

var classes = [...]string{Malformed: "malformed", Spoofed: "spoofed", Unwanted: "unwanted", Policy: "policy",
	Exhausted: "exhausted", Delivery: "delivery", Overload: "overload"}

// String returns the class's name in metrics and docs.
func (c Class) String() string { return classes[c] }

// reasons is the one place that explains a reason. where names the stages; answer is the ICMP error
// (type/code) that an inside sender gets; check says what an operator looks at or does.
var reasons = [NumReasons]struct {
	name   string
	class  Class
	where  string
	help   string
	answer string
	check  string
}{
	Pass: {name: "pass", help: "not dropped"},
	ShortFrame: {"short_frame", Malformed, "classify",
		"shorter than its headers say",
		"", "capture packets at the neighbor"},
	Truncated: {"truncated", Delivery, "classify",
		"longer than the port's MTU, and cut short before weir got it",
		"", "on net_af_packet, IPv4 fragments that the kernel joined to more than a frame of its ring: a larger `framesz`, or net_pcap"},
	Oversized: {"oversized", Malformed, "classify",
		"longer than one packet buffer",
		"", "the `mtu` of the port"},
	NotOurMAC: {"not_our_mac", Unwanted, "classify",
		"addressed to another station",
		"", "a hub, a mirror port, a wrong `mac`, multicast; normal in small numbers"},
	BadEtherType: {"bad_ethertype", Malformed, "classify",
		"neither IPv4, IPv6 nor ARP",
		"", "capture packets at the neighbor"},
	VLANTag: {"vlan_tag", Malformed, "classify",
		"a VLAN tag, or none, that belongs to no attachment of the port",
		"", "compare `vlan` under `attach` and `ports` with what the switch sends"},
	TunnelChecksum: {"tunnel_checksum", Malformed, "classify",
		"wrong IPv4 header checksum of an outer packet",
		"", "broken packets: capture in the underlay"},
	TunnelFragment: {"tunnel_fragment", Malformed, "classify",
		"an outer packet in fragments",
		"", "the underlay's MTU is too small: raise it by what the tunnel adds"},
	TunnelLength: {"tunnel_length", Malformed, "classify",
		"an outer packet whose IP, UDP or tunnel header is cut short or has a wrong length",
		"", "broken or hostile packets: capture in the underlay"},
	TunnelVersion: {"tunnel_version", Malformed, "classify",
		"a VXLAN header without a valid VNI, or a Geneve header of another version",
		"", "another protocol on the tunnel's UDP port"},
	TunnelControl: {"tunnel_control", Policy, "classify",
		"a Geneve control packet",
		"", "the peer sends Geneve OAM, which weir does not speak"},
	TunnelOptions: {"tunnel_options", Malformed, "classify",
		"Geneve options that reach over the end",
		"", "broken or hostile packets: capture in the underlay"},
	TunnelCritical: {"tunnel_critical", Policy, "classify",
		"a critical Geneve option, none of which weir knows",
		"", "the peer is no plain Geneve endpoint, such as an OVN chassis"},
	TunnelVNI: {"tunnel_vni", Policy, "classify",
		"a VNI that no attachment of the port has",
		"", "compare `vni` under `attach` with the peer"},
	TunnelPeer: {"tunnel_peer", Spoofed, "classify",
		"from an endpoint that is the host of no instance of the attachment",
		"", "compare `host` of the instances with where their packets come from"},
	TunnelInner: {"tunnel_inner", Malformed, "classify",
		"a tunnel packet without an Ethernet frame in it",
		"", "the peer tunnels another protocol"},
	TunnelInnerTag: {"tunnel_inner_tag", Policy, "classify",
		"an inner frame with a VLAN tag",
		"", "the peer must take VLAN tags off before the tunnel"},
	TunnelECN: {"tunnel_ecn", Malformed, "classify",
		"congestion marked on an outer packet whose inner one does not take part (RFC 6040)",
		"", "the underlay marks packets that do not take part in ECN"},
	BadIPHeader: {"bad_ip_header", Malformed, "classify",
		"the IP header's version, lengths or options are wrong",
		"", "broken or hostile packets: capture at the neighbor"},
	BadIPChecksum: {"bad_ip_checksum", Malformed, "classify",
		"wrong IPv4 header checksum",
		"", "broken or hostile packets: capture at the neighbor"},
	BadExtension: {"bad_extension", Malformed, "classify",
		"IPv6 extension headers are cut short, malformed or refused",
		"", "broken or hostile packets: capture at the neighbor"},
	Fragment: {"fragment", Policy, "reassemble, select, egress",
		"fragments are refused by configuration",
		"", "a pool has `fragments: drop`"},
	BadFragment: {"bad_fragment", Malformed, "classify",
		"a fragment that is too small, reaches too far, or lacks its headers",
		"", "an attack: no correct sender makes such fragments"},
	FragmentOverlap: {"fragment_overlap", Malformed, "reassemble",
		"a fragment that overlaps another one of its datagram",
		"", "an attack, or a fast sender that reuses identifications within 30 s"},
	FragmentLimit: {"fragment_limit", Exhausted, "reassemble",
		"too many fragmented datagrams, or fragments of one",
		"", "a flood: `weir_received_packets_total` shows the port; each VPC has its own share"},
	FragmentTimeout: {"fragment_timeout", Delivery, "reassemble",
		"the first fragment of its datagram did not arrive",
		"", "first fragments are lost on the way, or a flood"},
	BadTransport: {"bad_transport", Malformed, "classify",
		"the TCP, UDP or ICMP header is cut short or has a wrong length",
		"", "broken or hostile packets: capture at the neighbor"},
	Martian: {"martian", Spoofed, "classify, route, deliver",
		"an address that must not appear on this wire",
		"", "private, loopback or multicast addresses; normal in small numbers, a flood is spoofed"},
	TTLExceeded: {"ttl_exceeded", Delivery, "route, deliver",
		"TTL or hop limit used up",
		"11/0, ICMPv6 3/0; also outside", "traceroute; a routing loop if there are many"},
	PuntLimited: {"punt_limited", Overload, "classify, route, deliver",
		"for weir itself, above the rate limit",
		"", "more than 500 frames a second of ARP and ND, or of pings to weir, on one port: find the sender"},
	NoService: {"no_service", Unwanted, "route, deliver",
		"to one of weir's addresses, which answer only pings",
		"", "hosts try ports of weir's own addresses; normal in small numbers"},
	ICMPUnsupported: {"icmp_unsupported", Unwanted, "classify, select, deliver",
		"ICMP of a type that is not translated",
		"", "redirects, source quench, router and mask messages: not needed across a gateway"},
	BadICMP: {"bad_icmp", Malformed, "select, deliver",
		"an ICMP error with a wrong checksum or an unreadable quote",
		"", "ICMP errors that routers mangled, or forged ones; normal in small numbers"},
	ICMPUnrelated: {"icmp_unrelated", Unwanted, "select, deliver",
		"an ICMP error that belongs to no session and no 1:1 address",
		"", "errors about ended flows, or forged ones; a flood is an attack on sessions, without effect"},
	AntiSpoof: {"antispoof", Spoofed, "lookup, route",
		"the source is not an address of an instance in this VPC",
		"", "`addresses`, `transit`, `attached` of the instance; `vpcs[].attach`"},
	SpoofedAttachment: {"spoofed_attachment", Spoofed, "route",
		"a source address of an instance that is on another attachment",
		"", "the instance moved, or a guest uses another's address: compare `attach` with where the packets come from"},
	SpoofedMAC: {"spoofed_mac", Spoofed, "route",
		"a source address of an instance whose `mac` is another",
		"", "a guest uses another's address, or the instance's `mac` is out of date"},
	SpoofedHost: {"spoofed_host", Spoofed, "classify, route",
		"a source address of an instance that is on another host",
		"", "the instance moved, or a guest uses another's address: compare `host` with where its packets come from"},
	NoRoute: {"no_route", Policy, "route",
		"no route of the VPC matches",
		"TCP of a connection: as `no_session`", "the VPC's routes: prefix, `class`, `from`"},
	RouteDrop: {"route_drop", Policy, "route",
		"a route says drop",
		"", "the VPC has a `drop` route"},
	NoEligible: {"no_eligible_address", Policy, "route, select",
		"the instance has no external address for the route's gateway",
		"3/13, ICMPv6 1/1; TCP of a connection: as `no_session`", "`weir check` warns about it: add the pool to the gateway, or an address to the instance"},
	PublicSource: {"public_source", Policy, "route",
		"an untranslated source towards a place where it is not allowed",
		"", "routes: a transit source towards a gateway, or an attached one into the VPC"},
	PrivateDestination: {"private_destination", Policy, "route",
		"to a private address that only a /0 route leads to",
		"3/13, ICMPv6 1/1; TCP of a connection: as `no_session`", "no private network is on the Internet; where one is outside: `ports[].private_sources`, or a longer route"},
	Untranslatable: {"untranslatable", Policy, "select, deliver",
		"AH, a routing header with segments left, or UDP over IPv6 without checksum: translation would break it",
		"", "AH or IPv6 source routing: use an attached prefix; tunnels without checksums: `sessions.allow_udp6_zero`"},
	SNATProtocol: {"snat_protocol", Policy, "select",
		"SNAT passes TCP, UDP and ICMP echo only",
		"3/13, ICMPv6 1/1", "GRE, ESP and the like need a floating address"},
	NoSession: {"no_session", Policy, "select",
		"for SNAT, without a session, and cannot start one",
		"TCP: a reset, unless `unknown_tcp` is `drop`", "sessions were lost, or a connection was idle for too long: timeouts, keepalives"},
	LimitInstance: {"limit_instance", Exhausted, "select",
		"the instance has reached its session limit",
		"3/1, ICMPv6 1/3", "raise the limit, or talk to the tenant"},
	LimitVPC: {"limit_vpc", Exhausted, "select",
		"the VPC has reached its session limit",
		"3/1, ICMPv6 1/3", "raise the limit, or talk to the tenant"},
	FairShare: {"fair_share", Exhausted, "select",
		"seven eighths of a worker's table are in use, and the VPC has more than its share",
		"3/1, ICMPv6 1/3", "a larger `dataplane.sessions` and a restart; `vpcs[].weight`; talk to the tenant"},
	TableFull: {"table_full", Exhausted, "select",
		"the session table is full",
		"3/1, ICMPv6 1/3", "`weir_sessions` shows which VPC; set limits, or a larger `dataplane.sessions` and restart"},
	PortsExhausted: {"ports_exhausted", Exhausted, "select",
		"no free port in the instance's SNAT range",
		"3/1, ICMPv6 1/3", "a larger range, or another address"},
	UnknownDestination: {"unknown_destination", Unwanted, "deliver",
		"from outside, to no address of weir",
		"", "`pools`, the routers' routes; normal for unassigned addresses"},
	OwnSource: {"own_source", Spoofed, "deliver",
		"from outside, with one of weir's external addresses as source",
		"", "a loop outside, or the routers' filters"},
	NoPartner: {"no_partner", Spoofed, "deliver",
		"from outside, to a private address that only partners know, and from none",
		"", "the VPC's routes with `translate: false`: none leads to the source; a flood is spoofed"},
	Unsolicited: {"unsolicited", Unwanted, "deliver",
		"from outside to an SNAT address, without a session or mapping",
		"", "normal in small numbers"},
	Filtered: {"filtered", Unwanted, "deliver",
		"from outside to a mapping whose filtering does not let the sender in",
		"", "normal; see `sessions.filtering`"},
	TCPReset: {"tcp_reset_out_of_window", Spoofed, "apply",
		"a TCP reset that does not fit its connection's sequence numbers",
		"", "spoofed, or from a middlebox; a flood is an attack, without effect"},
	TooBig: {"too_big", Delivery, "egress, transmit",
		"longer than the next link's MTU",
		"3/4 if DF is set, ICMPv6 2/0; also outside", "equal MTUs on all ports, or smaller ones in instances"},
	NoHeadroom: {"no_headroom", Delivery, "transmit",
		"no room before the packet for a tag or an outer header",
		"", "the device delivers packets without headroom: use another driver"},
	NoNextHop: {"no_next_hop", Delivery, "egress",
		"no live next hop of this family",
		"", "`ports[].next_hops`, `pools[].ports`; a VPC without `attach`"},
	NeighborUnresolved: {"neighbor_unresolved", Delivery, "transmit",
		"the neighbor did not answer",
		"", "the next hop or instance is down, or needs a configured `mac`"},
	TxFull: {"tx_full", Overload, "sending",
		"the transmit queue is full",
		"", "the device cannot keep up: the link and its speed"},
	HandoffFull: {"handoff_full", Overload, "steer, turn",
		"the ring to the worker that owns the flow is full",
		"", "one worker is overloaded: `weir_worker_busy_seconds_total`"},
	Restart: {"restart", Overload, "the next start",
		"in progress when a data plane died",
		"", "the data plane crashed: the log before the restart"},
}

// String returns the reason's name in counters and logs.
func (r Reason) String() string { return reasons[r].name }

// Help says the reason in a few words.
func (r Reason) Help() string { return reasons[r].help }

// Class returns the reason's class.
func (r Reason) Class() Class { return reasons[r].class }
