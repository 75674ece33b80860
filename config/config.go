// SPDX-License-Identifier: Apache-2.0

// Package config turns YAML into a checked, read-only Config.
//
// What the user writes (schema.go) and what the program uses (this file) are two sets of types. A
// Config that Load returned holds these guarantees, and no later code checks them again:
//
//   - Ports, Pools, Gateways, VPCs and each VPC's Instances are sorted by name (gateways by ID);
//     other lists are sorted by value, empty lists are nil, and adjacent ranges of one owner are
//     joined, so two texts with the same meaning give deeply equal Configs;
//   - every index (Pool.Ports, Gateway.Pools, Gateway.VPC, Route.Gateway, Attachment.Port) is in
//     range, and no two attachments have the same port and tag;
//   - prefixes are canonical, pool ranges do not overlap, every external address lies in exactly
//     one pool and belongs to one instance (an SNAT address: to one owner per port, never also to a
//     1:1 address);
//   - a forward lies in one of its instance's shares, and an instance has no two of one address
//     and protocol with the same Port or the same ToPort;
//   - an attached prefix lies in one pool and overlaps no external address and no other attached
//     prefix;
//   - an instance with an external address or attached prefix has a private address of that family;
//   - subnets of one VPC do not overlap, every instance address lies in one of them, no two
//     instances of a VPC share an address, and none has one of weir's addresses;
//   - no two VPCs have one private address in subnets that leave untranslated, and none of those
//     subnets meets a pool or the network of an outside port;
//   - a route and its target are of one family, and no two routes of a VPC have the same To, From
//     and Class.
//
// Goroutines share a Config: it is read-only after Load.
package config

import (
	"encoding/hex"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Version is the schema version that this program reads.
const Version = 1

// Bounds of a configuration.
const (
	MaxPorts    = 32
	MaxWorkers  = 64
	MaxVPCs     = 65535
	MaxFloating = 64 // floating addresses of one instance and family

	MaxInstances     = 1 << 20 // of all VPCs
	MaxSNATAddresses = 1 << 16 // different ones
	MaxWeight        = 1000    // of a VPC

	MinSessions = 1 << 10
	MaxSessions = 1 << 27
	MinMemory   = 64 << 20
	MaxMemory   = 1 << 40
	MaxMTU      = 9600
	MaxUDPPorts = 254 // UDP ports with their own timeouts

	MaxZeroPorts = 64 // UDP ports of sessions.allow_udp6_zero
)

// DefaultConfig is what holds for the keys that a configuration leaves out. It is read-only.
var DefaultConfig = Config{
	API: API{Listen: "127.0.0.1:9474", Socket: "/run/weir/api.sock"},
	Log: Log{Level: "info", Format: "text"},
	Dataplane: Dataplane{
		Workers:  []int{1},
		Memory:   512 << 20,
		Idle:     IdleSleep,
		Sessions: 1 << 20,
		VFIOIntr: "auto",
		IOVA:     "auto",
	},
	Sessions: Sessions{
		Spread:       SpreadFlow,
		DrainTimeout: 10 * time.Minute,
		PortRest:     2 * time.Minute,
		MSSClamp:     MSSClampAuto,
		UnknownTCP:   UnknownTCPReset,
		PerInstance:  65536,
		Timeouts: Timeouts{
			TCPPartiallyOpen: 4 * time.Minute,
			TCPEstablished:   2*time.Hour + 4*time.Minute,
			TCPClosing:       4 * time.Minute,
			UDP:              5 * time.Minute,
			UDPPorts:         []PortTimeout{{53, 10 * time.Second}}, // a question and its answer (RFC 4787 REQ-5a)
			ICMP:             time.Minute,
			Other:            5 * time.Minute,
		},
	},
	Reload: Reload{MaxShrink: 50},
}

// DefaultMTU is a port's MTU when it names none.
const DefaultMTU = 1500

// Config is one whole configuration.
type Config struct {
	API       API
	Metrics   Metrics
	Log       Log
	Dataplane Dataplane
	Ports     []Port
	Pools     []Pool
	Gateways  []Gateway
	Sessions  Sessions
	Reload    Reload
	Warnings  Warnings
	VPCs      []VPC
}

// API is where the control process serves HTTP.
type API struct {
	Listen string // host:port; empty: no listener
	Socket string // path of a Unix socket; empty: none
}

// Metrics says what scrapers are told of tenants.
type Metrics struct {
	Tenants Tenants
}

// Tenants says how series by VPC are labelled.
type Tenants uint8

const (
	TenantNames Tenants = iota
	TenantIDs           // numbers that say nothing of the tenant
	TenantsOff          // no such series
)

// Log says how the log is written.
type Log struct {
	Level  string // debug, info, warn, error
	Format string // text, json
}

// Dataplane holds what is read once, at start.
type Dataplane struct {
	Workers  []int  // logical cores that poll
	Memory   uint64 // bytes for packet buffers and DPDK's own needs
	Idle     Idle
	Sessions int    // capacity of the session table, all workers together
	VFIOIntr string // how vfio delivers interrupts: auto, legacy, msi, msix
	IOVA     string // how devices address memory: auto, pa, va
}

// Idle says what a worker does while its queues are empty.
type Idle uint8

const (
	IdleSleep Idle = iota // back off with short sleeps
	IdleBusy              // never sleep
)

// Side is the side of the gateway that a port faces.
type Side uint8

const (
	Inside  Side = iota // towards the VPCs
	Outside             // towards the Internet
)

// MAC is an Ethernet address. The zero MAC means "none configured".
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Port is one network port.
type Port struct {
	Name           string
	Device         string // a PCI address or a vdev string, as DPDK takes it
	Side           Side
	MTU            int            // bytes of an IP packet
	MAC            MAC            // zero: the device's own
	Addresses      []netip.Prefix // weir's: the address and its on-link prefix, not masked; inside: where tunnels end
	VLAN           VLAN           // outside only: inside, attachments have VLANs
	PCP            PCP            // likewise
	NextHops       []NextHop      // inside: the routers of the network that tunnels go over
	PrivateSources []netip.Prefix // outside only; sorted, masked: private networks that flows may begin from
	Answer         Answer         // outside only
}

// VLAN is the tag of a frame, or its two tags: the VLAN IDs, zero where there is none.
type VLAN struct{ Outer, Inner uint16 }

// PCP says which priority tagged frames leave with.
type PCP uint8

// KeepPCP keeps the priority and drop eligibility that a packet came with; any other PCP is 1 + the
// priority that is set.
const KeepPCP PCP = 0

// Encap is how packets of an attachment travel.
type Encap uint8

const (
	NoEncap Encap = iota
	VXLAN         // RFC 7348
	Geneve        // RFC 8926
)

// NextHop is a router on the port's network.
type NextHop struct {
	Address netip.Addr
	MAC     MAC // zero: resolved by ARP or ND
}

// Answer says for which external addresses a port answers ARP and neighbor solicitations.
type Answer uint8

const (
	AnswerOnLink Answer = iota // those inside the port's own prefixes
	AnswerAll
	AnswerNone
)

// Range is an inclusive range of addresses of one family.
type Range struct {
	From, To netip.Addr
}

// Contains reports whether a lies in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.From.BitLen() && r.From.Compare(a) <= 0 && a.Compare(r.To) <= 0
}

// Pool is a named set of public ranges.
type Pool struct {
	Name     string
	Ranges   []Range
	Ports    []int // outside ports through which its addresses leave; empty: any
	Sessions Translation
}

// Translation is how sessions over an address of a pool are translated.
type Translation struct {
	Mapping        Mapping
	Filtering      Filtering
	Fragments      Fragments
	InboundRefresh InboundRefresh
}

// Mapping says which flows of an internal endpoint share an external one (RFC 4787 §4.1). It
// concerns SNAT.
type Mapping uint8

const (
	EndpointIndependentMapping     Mapping = iota // all of them
	AddressAndPortDependentMapping                // none: an external port serves many remote endpoints at once
)

// Filtering says who may send to a mapping from outside (RFC 4787 §5). It concerns SNAT.
type Filtering uint8

const (
	AddressDependentFiltering        Filtering = iota // remote addresses that the mapping has a session with
	EndpointIndependentFiltering                      // anybody
	AddressAndPortDependentFiltering                  // remote endpoints that the mapping has a session with
)

// InboundRefresh says whether packets from outside refresh sessions (RFC 7857 §7).
type InboundRefresh uint8

const (
	RefreshOff InboundRefresh = iota
	RefreshOn
)

// Fragments says what becomes of fragments of translated packets.
type Fragments uint8

const (
	TrackFragments Fragments = iota // virtual reassembly
	DropFragments
)

// ID is a gateway's UUID, never zero.
type ID [16]byte

func (id ID) String() string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Gateway is an Internet gateway: a tag that says which pools may give a packet its source address.
type Gateway struct {
	Name      string
	ID        ID
	Pools     []int        // indexes into Config.Pools
	Addresses []netip.Addr // single external addresses beside the pools
	VPC       int          // index into Config.VPCs of the one VPC that may name it; -1: any
}

// Spread says what a flow's choice among several floating addresses hashes.
type Spread uint8

const (
	SpreadFlow Spread = iota
	SpreadEndpoint
	SpreadInstance
)

// OnMove says what becomes of a session whose address is no longer eligible for its route's
// gateway.
type OnMove uint8

const (
	OnMoveKeep  OnMove = iota // it stays
	OnMoveDrain               // it stays for at most DrainTimeout
	OnMoveCut                 // it ends
)

// Sessions holds the defaults of session handling.
type Sessions struct {
	Spread        Spread
	OnMove        OnMove
	DrainTimeout  time.Duration
	Translation                 // already in Pool.Sessions where nothing overrides it
	PortRest      time.Duration // before another internal endpoint gets a port; whole milliseconds
	MSSClamp      int           // bytes, MSSClampAuto or MSSClampOff
	UnknownTCP    UnknownTCP
	AllowUDP6Zero []uint16 // sorted: ports of UDP over IPv6 that is translated without a checksum
	PerInstance   int      // sessions; 0: no limit. Already in Instance.PerInstance where nothing overrides it
	PerVPC        int      // sessions; 0: no limit. Already in VPC.PerVPC where nothing overrides it
	Timeouts      Timeouts
}

// Values of Sessions.MSSClamp that are not sizes.
const (
	MSSClampAuto = -1 // what the MTUs of both sides allow
	MSSClampOff  = 0
)

// UnknownTCP says what becomes of a TCP segment from inside that has no session and begins none.
type UnknownTCP uint8

const (
	UnknownTCPDrop UnknownTCP = iota
	UnknownTCPReset
)

// Timeouts are idle times after which a session ends: whole milliseconds, 1 s to 24 h.
type Timeouts struct {
	TCPPartiallyOpen, TCPEstablished, TCPClosing, UDP, ICMP, Other time.Duration
	UDPPorts                                                       []PortTimeout // sorted by port
}

// PortTimeout is the idle time of UDP sessions with one remote port (RFC 4787 REQ-5a).
type PortTimeout struct {
	Port    uint16
	Timeout time.Duration
}

// Warnings says what is not worth a warning.
type Warnings struct {
	Ignore []string // NAME:OBJECT, where the object may end in *
}

// Reload holds the guards of a reload.
type Reload struct {
	MaxShrink int // percent of the objects that one reload may take away
}

// VPC is one tenant's private network.
type VPC struct {
	Name      string
	Attach    []Attachment
	Subnets   []netip.Prefix
	Routes    []Route
	Instances []Instance
	PerVPC    int // sessions of the whole VPC; 0: no limit
	Weight    int // of its share of a session table that is nearly full
}

// Attachment is where a VPC's packets come and go.
type Attachment struct {
	Port      int // index into Config.Ports, an inside port
	VLAN      VLAN
	PCP       PCP
	Encap     Encap
	Tunnel    Tunnel // zero without Encap
	Addresses []netip.Prefix
	NextHops  []NextHop
}

// AttachmentSet is a text that two VPCs, of one or of two configurations with the same ports, share
// when their packets come and go at the same places.
func (v *VPC) AttachmentSet() string {
	places := make([]string, len(v.Attach))
	for i := range v.Attach {
		places[i] = v.Attach[i].place()
	}
	slices.Sort(places)
	return strings.Join(places, " ")
}

// place names what no two attachments of a configuration have in common.
func (a *Attachment) place() string {
	return fmt.Sprint(a.Port, a.VLAN, a.Encap, a.Tunnel.VNI)
}

// Tunnel is what an attachment with Encap has.
type Tunnel struct {
	VNI          uint32
	Peers        []netip.Prefix // endpoints that may send
	MAC          MAC            // weir's own in the inner frames; zero: the port's
	UDPPort      uint16
	DSCP         DSCP
	ZeroChecksum bool // of UDP over IPv6
}

// DSCP says which DSCP outer headers have.
type DSCP uint8

// CopyDSCP copies the inner packet's; any other DSCP is the one that is set.
const CopyDSCP DSCP = 255

// Class orders routes of equal length: a custom route beats a system one.
type Class uint8

const (
	System Class = iota
	Custom
)

// Target is the kind of thing that a route leads to.
type Target uint8

const (
	TargetDrop    Target = iota
	TargetGateway        // tag with Route.Gateway
	TargetAddress        // VPC-internal, through the next hop Route.Address
	TargetSubnet         // VPC-internal, to the destination itself in Route.Subnet
)

// UnnamedGateway is the Route.Gateway of a route to the unnamed gateway.
const UnnamedGateway = -1

// Route is one entry of a VPC's routing table. The implicit system route of each subnet to itself
// is not listed.
type Route struct {
	To      netip.Prefix
	From    netip.Prefix // zero: any source
	Class   Class
	Target  Target
	Gateway int // index into Config.Gateways or UnnamedGateway; TargetGateway only
	Address netip.Addr
	Subnet  netip.Prefix

	Untranslated bool // TargetGateway only: those in To know the VPC's addresses
}

// Untranslated yields the subnets whose addresses leave as they are by a route with Untranslated:
// From, or all of its family.
func (v *VPC) Untranslated(r *Route) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for _, s := range v.Subnets {
			if s.Addr().BitLen() == r.To.Addr().BitLen() && (!r.From.IsValid() || r.From == s) && !yield(s) {
				return
			}
		}
	}
}

// Instance is a guest of a VPC.
type Instance struct {
	Name        string
	Address4    netip.Addr // zero: none
	Address6    netip.Addr
	MAC         MAC          // zero: resolved by ARP or ND
	Hosts       []netip.Addr // tunnels: endpoints that its packets come from; the first is sent to
	Transit     []netip.Prefix
	Floating    []netip.Addr
	Ephemeral   []netip.Addr // at most one per family
	SNAT        []SNAT
	Forwards    []Forward
	Attached    []netip.Prefix
	PerInstance int // sessions; 0: no limit
}

// Identity returns the address that the instance is known by within its VPC: the IPv4 one, else the
// IPv6 one. Its name is a label.
func (i *Instance) Identity() netip.Addr {
	if i.Address4.IsValid() {
		return i.Address4
	}
	return i.Address6
}

// SNAT is an instance's share of an external address: ports First to Last, inclusive.
type SNAT struct {
	Address     netip.Addr
	First, Last uint16
}

// Forward is a port of an instance's share that always leads to it: what comes to Port of Address
// goes to the instance's ToPort.
type Forward struct {
	Address      netip.Addr
	Protocol     Protocol
	Port, ToPort uint16
}

// Protocol is the number of an IP protocol with ports.
type Protocol uint8

const (
	TCP Protocol = 6
	UDP Protocol = 17
)

func (p Protocol) String() string {
	if p == TCP {
		return "TCP"
	}
	return "UDP"
}
