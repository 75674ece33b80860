// SPDX-License-Identifier: Apache-2.0

// Package generation is the compiled, immutable form of a configuration: the records that workers
// read, the compiler that makes them, and what a newer generation means for a session (affinity).
// Control writes a generation before it is published, and nobody afterwards.
package generation

import (
	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/memory"
	"weir/pipeline/session"
)

// A Generation is one compiled configuration: flat tables in one segment that nobody changes.
// Records name each other by index; only neighbor slots and the slots of VPCs and instances lie in
// the State and outlive it.
type Generation struct {
	Number  uint64
	Segment memory.Segment
	Header  *Header
	Tables
}

// Header stands at the start of a generation's segment.
type Header struct {
	memory.Header
	Number     uint64
	HostSecret uint64
	Made       int64                        // when it was compiled, Unix seconds
	Timeouts   [2][session.NumStates]uint32 // milliseconds; as configured, and under pressure
	Floors     [session.NumStates]uint32    // of VPCs with more than their share, where that is less
	Drain      uint32                       // milliseconds
	PortRest   uint32                       // milliseconds
	Spread     uint8
	OnMove     uint8
	UnknownTCP uint8
	_          [3]uint8
	MSSClamp   uint16 // bytes, ClampAuto or ClampOff
	UDPCount   uint16
	_          [6]uint8
	// UDP timeouts by remote port, sorted by it; the first is at 1, for Session.Timer.
	UDPPorts    [config.MaxUDPPorts + 2]uint16
	UDPTimeouts [config.MaxUDPPorts + 2]uint32
	ZeroPorts   [config.MaxZeroPorts]uint16 // UDP over IPv6 without a checksum is translated from and to these
	ZeroCount   uint16
	_           [6]uint8
	Sections    [numSections]section
}

// section is where a table lies: Count records, and room for Cap of them.
type section struct{ Off, Count, Cap uint64 }

const (
	numSections   = 29
	sourceSection = numSections - 1
)

// Tables are the sections. Each is a slice into the segment (or, while compiling, on the heap).
type Tables struct {
	Ports       table[Port]
	OnLink      table[Prefix] // the outside ports' own prefixes
	Private     table[Prefix] // private sources of the outside ports
	Hops        table[Hop]    // next hops of the outside ports
	Groups      table[Group]  // of them
	Routers     table[Hop]    // next hops of attachments
	Attachments table[Attachment]
	tags        table[uint32] // open hash table by word: 1 + index of an attachment; 0: empty
	Endpoints   table[uint16] // of instances behind tunnels: links
	Links       table[Link]
	VPCs        table[VPC]
	Instances   table[Instance]
	Selections  table[Selection] // of an instance: per tag of its VPC, IPv4 then IPv6
	Candidates  table[Candidate]
	Routes      table[Route]
	ranges      table[rangeTable]
	starts      table[inet.Addr] // of range tables
	results     table[uint32]    // beside starts; 0: none, else 1 + index
	Hosts       table[Host]      // open hash table
	SNAT        table[SNATRange]
	PortRanges  table[session.PortRange] // an instance's ports of an SNAT address, but forwarded ones
	Forwards    table[Forward]           // of a range, by space and port; of a candidate, by private port
	Sources     table[Source]
	Attached    table[Attached]
	gateways    table[int32]  // lists of gateways
	sets        table[span]   // the lists: gateways that a pool, or an address, is associated with
	names       table[byte]   // of the VPCs, one after the other; for control
	nameEnds    table[uint32] // where each name ends
	source      table[byte]   // the text that it was compiled from, as control wants it; for control
}

// columns returns all sections in their order.
func (t *Tables) columns() [numSections]column {
	return [numSections]column{&t.Ports, &t.OnLink, &t.Private, &t.Hops, &t.Groups, &t.Routers, &t.Attachments, &t.tags, &t.Endpoints, &t.Links, &t.VPCs, &t.Instances, &t.Selections, &t.Candidates, &t.Routes,
		&t.ranges, &t.starts, &t.results, &t.Hosts, &t.SNAT, &t.PortRanges, &t.Forwards, &t.Sources, &t.Attached, &t.gateways, &t.sets, &t.names, &t.nameEnds, &t.source}
}

// span is a run of records of another section.
type span struct{ First, Count uint32 }

func (s span) End() uint32 { return s.First + s.Count }

type Port struct {
	Side   uint8
	Tagged bool // some of its frames have tags or outer headers
	MTU    uint16
	Own    Place        // inside: of its plain frames; outside: of all its frames
	Ends   [2]inet.Addr // inside, per family: where tunnels end; zero: nowhere
	UDP    [2]uint16    // VXLAN's and Geneve's ports there; 0: there are none
	MAC    config.MAC
	Answer uint8 // outside: for which external addresses it answers
	_      uint8
}

// Place is where a frame comes from.
type Place struct {
	At    attach.Word
	Index uint32 // in Attachments; Unattached: no VPC's
}

// Unattached is the index of no attachment.
const Unattached = ^uint32(0)

// Attachment is where packets of a VPC come and go. Its router addresses are hosts, its next hops
// Routers.
type Attachment struct {
	At   attach.Word
	VPC  uint32
	MTU  uint16 // of an IP packet
	Link uint16 // to what is on it; a tunnel has one for each endpoint instead
	Slot uint32 // of the VPC
}

// Link is a way to something: the first ones are the ports', in their order.
type Link struct {
	MTU uint16 // of an IP packet
	PCP config.PCP

	// Through a tunnel.
	Size     uint8 // of the outer header, behind Ethernet's; 0: no tunnel
	Flags    uint8
	_        [3]uint8
	Neighbor uint32 // who gets the outer packets
	Inner    uint64 // MAC word that inner frames come from and go to; 0: the port's
	Endpoint inet.Addr
	Hop      inet.Addr // the neighbor's address
	Header   [MaxOuter]byte
	Sum      uint32 // of the words of an IPv4 header
	_        [4]uint8
}

// MaxOuter is the longest outer header: IPv6, UDP and VXLAN or Geneve without options.
const MaxOuter = header.IPv6Size + header.UDPSize + 8

// Flags of a link through a tunnel.
const (
	CopyDSCP = 1 << iota // of the inner packet
	FullUDP              // UDP over IPv6 has a checksum
)

// Group is a set of next hops that a session's packets are spread over.
type Group struct {
	Ports uint32 // the outside ports on which they lie, a bit each
}

// Prefix is a prefix of an outside port: its own, or one of private sources.
type Prefix struct {
	First, Last inet.Addr
	At          attach.Word
	_           uint32
}

// Hop is a router: an outside port's, which flows are spread over, or an attachment's.
type Hop struct {
	Addr     inet.Addr
	Neighbor uint32
	At       attach.Word
	Family   uint8
	_        [7]uint8
}

type VPC struct {
	Slot    uint32
	Limit   uint32    // sessions; 0: none
	Tags    uint32    // how many different gateways its routes name
	Sources [2]uint32 // range table per family: transit and attached prefixes -> sources; NoTable: none
	Weight  uint32    // of its share of a table
}

type Instance struct {
	Addr       [2]inet.Addr // per family; zero: none
	VPC        uint32
	Slot       uint32
	Limit      uint32
	Selections uint32    // first of 2 x Tags
	Routes     [2]uint32 // range table per family -> routes
	Neighbor   [2]uint32
	At         [2]attach.Word // where it is, per family; attach.None: nowhere
	Link       [2]uint16      // the way to it
	_          [4]uint8
	MAC        [2]uint64 // of its packets, per family; 0: any
	Hosts      [2]span   // in Endpoints, per family: the links that its packets may come by; the first one leads to it
}

// Kinds of a selection.
const (
	SelectNone      = iota // nothing eligible
	SelectFloating         // 1:1, rendezvous among the candidates
	SelectEphemeral        // 1:1, one candidate
	SelectSNAT             // one candidate, with port ranges
)

// Selection is what an instance may use for one tag and family.
type Selection struct {
	Candidates span
	Kind       uint8
	_          [3]uint8
}

// Candidate is an external address that may be chosen.
type Candidate struct {
	Addr     inet.Addr
	Ranges   [session.PortSpaces]span // SNAT: its ports, without those that are forwarded
	Forwards span                     // SNAT: the ports that always lead to the instance
	Slot     uint32                   // SNAT: the address's
	Ports    uint32                   // outside ports that it may leave by
	Rules    rules
	_        [7]byte
}

// rules say how sessions over an address are translated: what its pool has of config.Translation.
type rules uint8

const (
	Overload       rules = 1 << iota // mapping address-and-port-dependent
	FilterNone                       // filtering endpoint-independent
	FilterPort                       // filtering address-and-port-dependent; neither of the two: address-dependent
	DropFragments                    // fragments are refused
	InboundRefresh                   // packets from outside refresh sessions
)

// Kinds of a route.
const (
	RouteDrop     = iota + 1
	RouteGateway  // tag
	RouteInternal // untranslated, to Hop at At, or, with no Hop, to the destination itself
)

type Route struct {
	Hop     inet.Addr
	Gateway int32  // index in the configuration; config.UnnamedGateway
	Tag     uint32 // number of that gateway among those that the VPC's routes name
	Index   int32  // the route's place in its VPC's list; -1: the implicit route of a subnet
	At      attach.Word
	Link    uint16
	Kind    uint8
	Plain   bool // to a gateway, and untranslated: by Ports
	Ports   uint32
	All     uint8 // 1: it is to a /0
	_       [7]uint8
}

// rangeTable maps addresses to results by sorted, disjoint ranges: each starts where the one before
// it ends.
type rangeTable struct{ span }

// NoTable is no range table.
const NoTable = ^uint32(0)

// Kinds of a host.
const (
	HostOwn       = iota + 1 // an address of weir itself
	HostInstance             // inside: an instance's own address
	hostFloating             // outside: 1:1
	hostEphemeral            // outside: 1:1
	HostSNAT                 // outside: shared by port ranges
	HostLink                 // of an attachment: an endpoint, whose packets come by link Index
)

// Host is an address that weir knows, in a domain: 0 outside, 1 + index of a VPC inside.
type Host struct {
	Addr   inet.Addr
	Domain uint32 // or EndpointDomain
	Kind   uint8  // 0: empty
	Port   uint8  // HostOwn: the port it belongs to
	Ranges uint16 // HostSNAT: how many
	Index  uint32 // instance, or first of the ranges; inside, of HostOwn: attachment
	Ports  uint32 // outside ports that the address may use
	Set    uint32 // the gateways that the address is associated with
	Slot   uint32 // HostSNAT
	Rules  rules
	_      [7]uint8
}

// SNATRange is an instance's ports of a shared address.
type SNATRange struct {
	Instance    uint32
	First, Last uint16
	Forwards    span
}

// Forward is a port of a range that always leads to the instance.
type Forward struct {
	Port, Private uint16 // of the external address, and of the instance
	Space         session.PortSpace
	_             uint8
}

// Kinds of a source.
const (
	SourceTransit = iota + 1
	SourceAttached
)

// Source says whose a source address is that is no instance's own.
type Source struct {
	Kind     uint32
	Instance uint32
	Attached uint32
}

// Attached is a public prefix that is routed to an instance.
type Attached struct {
	First, Last inet.Addr
	Set         uint32 // it may leave by these gateways
	Instance    uint32
	Ports       uint32
	_           uint32
}

// genLayout is the hash over all types of a generation.
var genLayout = memory.Hash(Header{}, Port{}, Prefix{}, Hop{}, Group{}, Attachment{}, Link{}, VPC{}, Instance{}, Selection{}, Candidate{},
	Route{}, rangeTable{}, inet.Addr{}, Host{}, SNATRange{}, session.PortRange{}, Forward{}, Source{}, Attached{})

// AttachedTables are the first two range tables of every generation: all attached prefixes, per
// family.
const AttachedTables = 0

// PrivateTables are the next two: the private prefixes that some partner outside knows -> VPCs.
const PrivateTables = 2

// timer returns which of the UDP timeouts by remote port is a session's, or 0.
func (h *Header) timer(proto uint8, remotePort uint16) uint8 {
	if proto != header.ProtocolUDP {
		return 0
	}
	lo, hi := 1, 1+int(h.UDPCount)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); h.UDPPorts[mid] < remotePort {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo > int(h.UDPCount) || h.UDPPorts[lo] != remotePort {
		return 0
	}
	return uint8(lo)
}

// NumPorts returns the number of ports.
func (g *Generation) NumPorts() int { return len(g.Ports) }

// Eligible reports whether what has this set of gateways may be a source for gateway: the unnamed
// one takes only what is associated with none.
func (g *Generation) Eligible(set uint32, gateway int32) bool {
	s := g.sets[set]
	if gateway == config.UnnamedGateway {
		return s.Count == 0
	}
	for _, x := range g.gateways[s.First:s.End()] {
		if x == gateway {
			return true
		}
	}
	return false
}

// Source returns the text that the generation was compiled from. It aliases the segment.
func (g *Generation) Source() []byte { return g.source }

// name returns the name of VPC i.
func (g *Generation) name(i int) string {
	start := uint32(0)
	if i > 0 {
		start = g.nameEnds[i-1]
	}
	return string(g.names[start:g.nameEnds[i]])
}

// FD returns the descriptor of the generation's segment.
func (g *Generation) FD() int { return g.Segment.FD() }

// Size returns the bytes that the generation takes.
func (g *Generation) Size() uint64 { return g.Segment.Size() }

// Close unmaps it. No worker may use it any more.
func (g *Generation) Close() error { return g.Segment.Close() }

// store writes compiled tables to a new segment and returns the generation in it.
func store(h Header, t *Tables) (*Generation, error) {
	var l memory.Layout
	memory.Add[Header](&l, 1)
	for i, c := range t.columns() {
		h.Sections[i] = c.reserve(&l, c != column(&t.Hosts)) // which is a hash table: its length is its room
	}
	s, err := memory.New("generation", l.Size(), false)
	if err != nil {
		return nil, err
	}
	*memory.At[Header](s, 0) = h
	g := &Generation{Segment: *s}
	g.view()
	for i, c := range t.columns() {
		c.copyTo(g.columns()[i])
	}
	g.Segment.SealWhole(genLayout)
	return g, nil
}

// Attach maps the generation behind fd into g, which must be zero or closed, to read it, and takes
// fd over, also when it fails. One that is not what its maker has written is refused. It allocates
// nothing.
func (g *Generation) Attach(fd int) error {
	if err := g.Segment.MapRead(fd); err != nil {
		return err
	}
	if err := g.Segment.CheckWhole(genLayout); err != nil {
		g.Segment.Close()
		return err
	}
	g.view()
	return nil
}

// Whole reports whether the generation still is what its maker has written.
func (g *Generation) Whole() error { return g.Segment.CheckWhole(genLayout) }

func (g *Generation) view() {
	g.Header = memory.At[Header](&g.Segment, 0)
	g.Number = g.Header.Number
	for i, c := range g.columns() {
		c.view(&g.Segment, g.Header.Sections[i])
	}
}

// table is a section: a slice that can be stored to and viewed in a segment.
type table[T any] []T

type column interface {
	reserve(l *memory.Layout, room bool) section
	view(*memory.Segment, section)
	copyTo(column)
	extend(*memory.Segment, section)
	count() uint64
}

// reserve makes room for the table, and for what Compiler.Follow may add to it later.
func (t *table[T]) reserve(l *memory.Layout, room bool) section {
	n := len(*t)
	if room {
		n += n/8 + 32
	}
	return section{memory.Add[T](l, n), uint64(len(*t)), uint64(n)}
}

func (t *table[T]) view(s *memory.Segment, at section) {
	*t = memory.Slice[T](s, at.Off, int(at.Count))
}

// extend is view, but append has the room to itself.
func (t *table[T]) extend(s *memory.Segment, at section) {
	*t = memory.Slice[T](s, at.Off, int(at.Cap))[:at.Count]
}

func (t *table[T]) count() uint64 { return uint64(len(*t)) }

func (t *table[T]) copyTo(to column) { copy(*to.(*table[T]), *t) }

// InstanceNames returns "VPC/instance" by slot. cfg is the configuration that g was compiled from.
func (g *Generation) InstanceNames(cfg *config.Config) map[uint32]string {
	names := make(map[uint32]string, len(g.Instances))
	for i := range cfg.VPCs {
		v := &cfg.VPCs[i]
		for j := range v.Instances {
			if h := g.Host(uint32(i)+1, inet.FromNetip(v.Instances[j].Identity())); h != nil && h.Kind == HostInstance {
				names[g.Instances[h.Index].Slot] = v.Name + "/" + v.Instances[j].Name
			}
		}
	}
	return names
}

// identity returns what sessions know the instance by; vpc is the slot of its VPC.
func (in *Instance) identity(vpc uint32) InstanceID {
	a := in.Addr[inet.V4]
	if a == (inet.Addr{}) {
		a = in.Addr[inet.V6]
	}
	return InstanceID{vpc, a.Netip()}
}

// VPCNames returns the names of the VPCs of g by slot. cfg is the configuration that g was compiled
// from.
func (g *Generation) VPCNames(cfg *config.Config) map[uint32]string {
	names := make(map[uint32]string, len(g.VPCs))
	for i := range g.VPCs {
		names[g.VPCs[i].Slot] = cfg.VPCs[i].Name
	}
	return names
}

// Holds reports whether a lies in the prefix. Of most prefixes, all of IPv4 among them, the upper
// half is one number.
func (l *Prefix) Holds(a inet.Addr) bool {
	if l.First.Hi == l.Last.Hi {
		return a.Hi == l.First.Hi && a.Lo-l.First.Lo <= l.Last.Lo-l.First.Lo
	}
	return !a.Less(l.First) && !l.Last.Less(a)
}

// Values of Header.MSSClamp that are not sizes.
const (
	ClampOff  = 0
	ClampAuto = 0xffff
)

func clampOf(n int) uint16 {
	if n == config.MSSClampAuto {
		return ClampAuto
	}
	return uint16(n)
}

// ZeroSum reports whether UDP over IPv6 between two ports may be translated without a checksum.
func (g *Generation) ZeroSum(a, b uint16) bool {
	for _, port := range g.Header.ZeroPorts[:g.Header.ZeroCount] {
		if port == a || port == b {
			return true
		}
	}
	return false
}
