// SPDX-License-Identifier: Apache-2.0

// Package drop has the reasons for which packets are dropped: name, help, and nothing else. Code, counters,
// logs and the tables of the documentation spell a reason alike, because they all take it from here.
package drop

// Reason says why a packet was dropped. Each has a counter, and its name is the same in code, counters and logs.
type Reason uint8

// The reasons, in the order in which a packet can meet them.
const (
	Pass Reason = iota // not dropped

	// classify
	ShortFrame      // shorter than its Ethernet header, or than its IP header says
	Oversized       // longer than one packet buffer
	NotOurMAC       // addressed to another station, or multicast that is not ours
	BadEtherType    // neither IPv4, IPv6 nor ARP
	VLANTag         // a tag on a port without VLANs
	BadIPHeader     // version, header length or total length lie, or a source route
	BadIPChecksum   // IPv4 header checksum
	BadExtension    // IPv6 extension headers: cut, too many, out of order, or of a kind that is refused
	Fragment        // fragments are refused by configuration
	BadFragment     // a fragment too small, too far, or without the headers that a first one has to have
	FragmentOverlap // a fragment that overlaps another of its datagram
	FragmentLimit   // too many datagrams in pieces, or too many pieces, wait
	FragmentTimeout // its datagram's first fragment did not come
	BadTransport    // TCP, UDP or ICMP header cut, or its length lies
	Martian         // an address that may not be on the wire here
	TTLExceeded     // TTL or hop limit used up
	PuntLimited     // for weir itself, over the punt rate or ring
	NoService       // to an address of weir's own, and no ping
	ICMPUnsupported // ICMP of a type that is not translated
	BadICMP         // an ICMP error with a wrong checksum, or whose quote cannot be read
	ICMPUnrelated   // an ICMP error about a packet of no session and no 1:1 address

	// inside
	AntiSpoof      // source is not an address of an instance of this VPC
	NoRoute        // no route of the VPC matches
	RouteDrop      // a route says drop
	NoEligible     // the route's gateway has no eligible external address of the instance
	PublicSource   // a public or transit source on the way to where it may not go
	Untranslatable // a protocol that no translation leaves intact
	SNATProtocol   // only TCP, UDP and ICMP echo pass through SNAT
	NoSession      // SNAT, and the packet neither belongs to a session nor begins one
	LimitInstance  // the instance has as many sessions as it may
	LimitVPC       // the VPC has as many sessions as it may
	FairShare      // the table is nearly full, and the VPC has more of it than its fair share
	TableFull      // no room for another session
	PortsExhausted

	// outside
	UnknownDestination // not an address of ours
	OwnSource          // the source is one of our own external addresses
	Unsolicited        // to an SNAT address, and of no session or mapping
	Filtered           // to a mapping, from whom its filtering does not let in
	TCPReset           // a reset that does not fit the connection's sequence numbers

	// transmit
	TooBig             // longer than the next link's MTU
	NoNextHop          // no live next hop
	NeighborUnresolved // the neighbor did not answer, or too many packets wait for it
	TxFull             // the transmit queue takes no more
	HandoffFull        // the worker that owns the flow takes no more
	Restart            // was in hand when a data plane died

	NumReasons
)

var reasons = [NumReasons]struct{ name, help string }{
	Pass:               {"pass", "not dropped"},
	ShortFrame:         {"short_frame", "shorter than its headers say"},
	Oversized:          {"oversized", "longer than one packet buffer"},
	NotOurMAC:          {"not_our_mac", "addressed to another station"},
	BadEtherType:       {"bad_ethertype", "neither IPv4, IPv6 nor ARP"},
	VLANTag:            {"vlan_tag", "a VLAN tag on a port without VLANs"},
	BadIPHeader:        {"bad_ip_header", "the IP header's version, lengths or options are wrong"},
	BadIPChecksum:      {"bad_ip_checksum", "wrong IPv4 header checksum"},
	BadExtension:       {"bad_extension", "IPv6 extension headers are cut, too many or refused"},
	Fragment:           {"fragment", "fragments are refused by configuration"},
	BadFragment:        {"bad_fragment", "a fragment too small, too far, or without its headers"},
	FragmentOverlap:    {"fragment_overlap", "a fragment that overlaps another one of its datagram"},
	FragmentLimit:      {"fragment_limit", "too many fragmented datagrams, or fragments of one"},
	FragmentTimeout:    {"fragment_timeout", "the first fragment of its datagram did not come"},
	BadTransport:       {"bad_transport", "the TCP, UDP or ICMP header is cut or its length wrong"},
	Martian:            {"martian", "an address that may not be on the wire here"},
	TTLExceeded:        {"ttl_exceeded", "TTL or hop limit used up"},
	PuntLimited:        {"punt_limited", "for weir itself, over the rate limit"},
	NoService:          {"no_service", "to an address of weir's own, which answers nothing but pings"},
	ICMPUnsupported:    {"icmp_unsupported", "ICMP of a type that is not translated"},
	BadICMP:            {"bad_icmp", "an ICMP error with a wrong checksum or an unreadable quote"},
	ICMPUnrelated:      {"icmp_unrelated", "an ICMP error about no packet of a session or a 1:1 address"},
	AntiSpoof:          {"antispoof", "the source is no address of an instance of this VPC"},
	NoRoute:            {"no_route", "no route of the VPC matches"},
	RouteDrop:          {"route_drop", "a route says drop"},
	NoEligible:         {"no_eligible_address", "the instance has no external address for the route's gateway"},
	PublicSource:       {"public_source", "an untranslated source on the way to where it may not go"},
	Untranslatable:     {"untranslatable", "AH, or a routing header on its way: no translation leaves them intact"},
	SNATProtocol:       {"snat_protocol", "SNAT passes TCP, UDP and ICMP echo only"},
	NoSession:          {"no_session", "through SNAT, of no session, and cannot begin one"},
	LimitInstance:      {"limit_instance", "the instance's session limit"},
	LimitVPC:           {"limit_vpc", "the VPC's session limit"},
	FairShare:          {"fair_share", "the session table is nearly full, and the VPC has more than its share"},
	TableFull:          {"table_full", "the session table is full"},
	PortsExhausted:     {"ports_exhausted", "no free port in the instance's SNAT range"},
	UnknownDestination: {"unknown_destination", "from outside, to no address of ours"},
	OwnSource:          {"own_source", "from outside, with one of our own addresses as source"},
	Unsolicited:        {"unsolicited", "from outside to an SNAT address, of no session or mapping"},
	Filtered:           {"filtered", "from outside to a mapping whose filtering does not let the sender in"},
	TCPReset:           {"tcp_reset_out_of_window", "a TCP reset that does not fit its connection's sequence numbers"},
	TooBig:             {"too_big", "longer than the next link's MTU"},
	NoNextHop:          {"no_next_hop", "no live next hop of this family"},
	NeighborUnresolved: {"neighbor_unresolved", "the neighbor did not answer"},
	TxFull:             {"tx_full", "the transmit queue is full"},
	HandoffFull:        {"handoff_full", "the ring to the worker that owns the flow is full"},
	Restart:            {"restart", "in hand when a data plane ended"},
}

// String returns the reason's name in counters and logs.
func (r Reason) String() string { return reasons[r].name }

// Help says the reason in a few words.
func (r Reason) Help() string { return reasons[r].help }
