// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"math/bits"

	"weir/config"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/memory"
	"weir/pipeline/session"
)

// A Generation is one compiled configuration: flat tables in one segment that nobody changes. Records name each
// other by index; only neighbor slots and the slots of VPCs and instances lie in the State and outlive it.
type Generation struct {
	Number  uint64
	segment memory.Segment
	h       *genHeader
	tables
}

// genHeader stands at the start of a generation's segment.
type genHeader struct {
	memory.Header
	Number     uint64
	HostSecret uint64
	Timeouts   [2][session.NumStates]uint32 // milliseconds; as configured, and under pressure
	Drain      uint32                       // milliseconds
	PortRest   uint32                       // milliseconds
	Spread     uint8
	OnMove     uint8
	UnknownTCP uint8
	_          [3]uint8
	MSSClamp   uint16 // bytes, clampAuto or clampOff
	UDPCount   uint16
	_          [6]uint8
	// UDP timeouts by remote port, sorted by it; the first is at 1, for Session.Timer.
	UDPPorts    [config.MaxUDPPorts + 2]uint16
	UDPTimeouts [config.MaxUDPPorts + 2]uint32
	Sections    [numSections]section
}

// section is where a table lies: Count records, and room for Cap of them.
type section struct{ Off, Count, Cap uint64 }

const (
	numSections   = 21
	sourceSection = numSections - 1
)

// tables are the sections. Each is a slice into the segment (or, while compiling, on the heap).
type tables struct {
	ports      table[portRecord]
	onLink     table[prefixRecord] // the outside ports' own prefixes
	hops       table[hopRecord]    // next hops of the outside ports, and of attachments
	vpcs       table[vpcRecord]
	instances  table[instanceRecord]
	selections table[selection] // of an instance: per tag of its VPC, IPv4 then IPv6
	candidates table[candidate]
	routes     table[routeRecord]
	ranges     table[rangeTable]
	starts     table[inet.Addr] // of range tables
	results    table[uint32]    // beside starts; 0: none, else 1 + index
	hosts      table[host]      // open hash table
	snat       table[snatRange]
	portRanges table[session.PortRange] // an instance's ports of an SNAT address
	sources    table[sourceRecord]
	attached   table[attachedRecord]
	gateways   table[int32]  // lists of gateways
	sets       table[span]   // the lists: gateways that a pool, or an address, is associated with
	names      table[byte]   // of the VPCs, then of the instances, one after the other; for control
	nameEnds   table[uint32] // where each name ends
	source     table[byte]   // the text that it was compiled from, as control wants it; for control
}

// columns returns all sections in their order.
func (t *tables) columns() [numSections]column {
	return [numSections]column{&t.ports, &t.onLink, &t.hops, &t.vpcs, &t.instances, &t.selections, &t.candidates, &t.routes,
		&t.ranges, &t.starts, &t.results, &t.hosts, &t.snat, &t.portRanges, &t.sources, &t.attached, &t.gateways, &t.sets, &t.names, &t.nameEnds, &t.source}
}

// span is a run of records of another section.
type span struct{ First, Count uint32 }

func (s span) end() uint32 { return s.First + s.Count }

type portRecord struct {
	Side uint8
	_    uint8
	MTU  uint16
	VPC  int32 // inside: the VPC it belongs to, -1: none
	MAC  config.MAC
	_    [2]uint8
}

// prefixRecord is an on-link prefix of a port.
type prefixRecord struct {
	First, Last inet.Addr
	Port        uint8
	_           [7]uint8
}

type hopRecord struct {
	Addr     inet.Addr
	Neighbor uint32
	Port     uint8
	Family   uint8
	_        [2]uint8
}

type vpcRecord struct {
	Slot    uint32
	Limit   uint32    // sessions; 0: none
	Tags    uint32    // how many different gateways its routes name
	Sources [2]uint32 // range table per family: transit and attached prefixes -> sources; NoTable: none
	_       uint32
}

type instanceRecord struct {
	Addr       [2]inet.Addr // per family; zero: none
	VPC        uint32
	Slot       uint32
	Limit      uint32
	Selections uint32    // first of 2 x Tags
	Routes     [2]uint32 // range table per family -> routes
	Neighbor   [2]uint32
	Port       [2]uint8
	_          [6]uint8
}

// Kinds of a selection.
const (
	selectNone      = iota // nothing eligible
	selectFloating         // 1:1, rendezvous among the candidates
	selectEphemeral        // 1:1, one candidate
	selectSNAT             // one candidate, with port ranges
)

// selection is what an instance may use for one tag and family.
type selection struct {
	Candidates span
	Kind       uint8
	_          [3]uint8
}

// candidate is an external address that may be chosen.
type candidate struct {
	Addr   inet.Addr
	Ranges span   // SNAT: its ports
	Slot   uint32 // SNAT: the address's
	Ports  uint32 // outside ports that it may leave by
	Rules  rules
	_      [7]byte
}

// rules say how sessions over an address are translated: what its pool has of config.Translation.
type rules uint8

const (
	overload      rules = 1 << iota // mapping address-and-port-dependent
	filterNone                      // filtering endpoint-independent
	filterPort                      // filtering address-and-port-dependent; neither of the two: address-dependent
	dropFragments                   // fragments are refused
)

// Kinds of a route.
const (
	routeDrop     = iota + 1
	routeGateway  // tag
	routeInternal // untranslated, to Hop by Port, or, with no Hop, to the destination itself
)

type routeRecord struct {
	Hop     inet.Addr
	Gateway int32  // index in the configuration; config.UnnamedGateway
	Tag     uint32 // number of that gateway among those that the VPC's routes name
	Index   int32  // the route's place in its VPC's list; -1: the implicit route of a subnet
	Kind    uint8
	Port    uint8
	_       [2]uint8
}

// rangeTable maps addresses to results by sorted, disjoint ranges: each starts where the one before it ends.
type rangeTable struct{ span }

// NoTable is no range table.
const NoTable = ^uint32(0)

// Kinds of a host.
const (
	hostOwn       = iota + 1 // an address of weir itself
	hostInstance             // inside: an instance's own address
	hostFloating             // outside: 1:1
	hostEphemeral            // outside: 1:1
	hostSNAT                 // outside: shared by port ranges
)

// host is an address that weir knows, in a domain: 0 outside, 1 + index of a VPC inside.
type host struct {
	Addr   inet.Addr
	Domain uint32
	Kind   uint8  // 0: empty
	Port   uint8  // hostOwn: the port it belongs to
	Ranges uint16 // hostSNAT: how many
	Index  uint32 // instance, or first of the ranges
	Ports  uint32 // outside ports that the address may use
	Set    uint32 // the gateways that the address is associated with
	Slot   uint32 // hostSNAT
	Rules  rules
	_      [7]uint8
}

// snatRange is an instance's ports of a shared address.
type snatRange struct {
	Instance    uint32
	First, Last uint16
}

// Kinds of a source.
const (
	sourceTransit = iota + 1
	sourceAttached
)

// sourceRecord says whose a source address is that is no instance's own.
type sourceRecord struct {
	Kind     uint32
	Instance uint32
	Attached uint32
}

// attachedRecord is a public prefix that is routed to an instance.
type attachedRecord struct {
	First, Last inet.Addr
	Set         uint32 // it may leave by these gateways
	Instance    uint32
	Ports       uint32
	_           uint32
}

// genLayout is the hash over all types of a generation.
var genLayout = memory.Hash(genHeader{}, portRecord{}, prefixRecord{}, hopRecord{}, vpcRecord{}, instanceRecord{}, selection{}, candidate{},
	routeRecord{}, rangeTable{}, inet.Addr{}, host{}, snatRange{}, session.PortRange{}, sourceRecord{}, attachedRecord{})

// attachedTables are the first two range tables of every generation: all attached prefixes, per family.
const attachedTables = 0

// find returns 1 + the index that table maps a to, or 0.
func (g *Generation) find(table uint32, a inet.Addr) uint32 {
	if table == NoTable {
		return 0
	}
	t := g.ranges[table]
	starts := g.starts[t.First:t.end()]
	lo, hi := 0, len(starts) // the last start that is not above a lies in [lo-1, hi)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); a.Less(starts[mid]) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	if lo == 0 {
		return 0
	}
	return g.results[t.First+uint32(lo)-1]
}

// addressHash keys the open tables of addresses: hosts, within a domain, and neighbors, within a port.
func addressHash(secret uint64, domain uint32, a inet.Addr) uint32 {
	h, l := bits.Mul64(a.Hi^secret, (a.Lo^uint64(domain)<<32)*0x9e3779b97f4a7c15|1)
	h2, l2 := bits.Mul64((h^l^a.Lo)+secret, 0xd6e8feb86659fd93)
	return uint32(h2 ^ l2)
}

// host returns what a is in a domain, or nil.
func (g *Generation) host(domain uint32, a inet.Addr) *host {
	mask := uint32(len(g.hosts) - 1)
	for at := addressHash(g.h.HostSecret, domain, a) & mask; ; at = (at + 1) & mask {
		h := &g.hosts[at]
		if h.Kind == 0 {
			return nil
		}
		if h.Addr == a && h.Domain == domain {
			return h
		}
	}
}

// timer returns which of the UDP timeouts by remote port is a session's, or 0.
func (h *genHeader) timer(proto uint8, remotePort uint16) uint8 {
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

// Ports returns the number of ports.
func (g *Generation) Ports() int { return len(g.ports) }

// eligible reports whether what has this set of gateways may be a source for gateway: the unnamed one takes only what
// is associated with none.
func (g *Generation) eligible(set uint32, gateway int32) bool {
	s := g.sets[set]
	if gateway == config.UnnamedGateway {
		return s.Count == 0
	}
	for _, x := range g.gateways[s.First:s.end()] {
		if x == gateway {
			return true
		}
	}
	return false
}

// Source returns the text that the generation was compiled from. It aliases the segment.
func (g *Generation) Source() []byte { return g.source }

// name returns name i: the VPCs' come first, then the instances'.
func (g *Generation) name(i int) string {
	start := uint32(0)
	if i > 0 {
		start = g.nameEnds[i-1]
	}
	return string(g.names[start:g.nameEnds[i]])
}

// FD returns the descriptor of the generation's segment.
func (g *Generation) FD() int { return g.segment.FD() }

// Size returns the bytes that the generation takes.
func (g *Generation) Size() uint64 { return g.segment.Size() }

// Close unmaps it. No worker may use it any more.
func (g *Generation) Close() error { return g.segment.Close() }

// store writes compiled tables to a new segment and returns the generation in it.
func store(h genHeader, t *tables) (*Generation, error) {
	var l memory.Layout
	memory.Add[genHeader](&l, 1)
	for i, c := range t.columns() {
		h.Sections[i] = c.reserve(&l, c != column(&t.hosts)) // which is a hash table: its length is its room
	}
	s, err := memory.New("generation", l.Size(), false)
	if err != nil {
		return nil, err
	}
	*memory.At[genHeader](s, 0) = h
	g := &Generation{segment: *s}
	g.view()
	for i, c := range t.columns() {
		c.copyTo(g.columns()[i])
	}
	g.segment.Seal(genLayout)
	return g, nil
}

// Attach maps the generation behind fd into g, which must be zero or closed, and takes fd over, also when it fails. It
// allocates nothing.
func (g *Generation) Attach(fd int) error {
	if err := g.segment.Map(fd); err != nil {
		return err
	}
	if err := g.segment.Check(genLayout); err != nil {
		g.segment.Close()
		return err
	}
	g.view()
	return nil
}

func (g *Generation) view() {
	g.h = memory.At[genHeader](&g.segment, 0)
	g.Number = g.h.Number
	for i, c := range g.columns() {
		c.view(&g.segment, g.h.Sections[i])
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
