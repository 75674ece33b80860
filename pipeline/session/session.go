// SPDX-License-Identifier: Apache-2.0

// Package session is one worker's session table: two cache lines a session, found by either
// direction's key through buckets of one cache line, eight 16-bit tags each.
//
// A table lies in shared memory and has one writer, the worker that owns it; others may read
// sessions whose Word is not zero. The writer may die between any two stores: only the sessions
// themselves are truth, one atomic word publishes each, and Rebuild makes everything else anew from
// them.
package session

import (
	"sync/atomic"
	"unsafe"

	"weir/pipeline/attach"
	"weir/pipeline/header"
	"weir/pipeline/inet"
)

// State is where a session stands in its life. It selects the idle timeout.
type State uint8

const (
	Free        State = iota
	UDP               // a UDP flow
	ICMP              // an echo identifier
	Other             // any other protocol, 1:1 only
	TCPOpening        // partially open: not yet seen established (RFC 7857 §2.1)
	TCPOpen           // established
	TCPClosing        // FIN from both sides, or a reset
	Unconfirmed       // began from outside; nothing from inside yet
	NumStates
)

var stateNames = [NumStates]string{"free", "udp", "icmp", "other", "tcp-partially-open", "tcp-established", "tcp-closing", "unconfirmed"}

func (s State) String() string { return stateNames[s] }

// Session flags.
const (
	SNAT        = 1 << iota // the external port is translated too
	FromOutside             // began with a packet from the Internet: replies keep the address it arrived on
	SeenInside              // TCP: the instance's SYN has passed, so End of its side and Ack of the other are known
	SeenOutside             // TCP: likewise the remote's
	FinInside
	FinOutside
	Draining // ends at Drain
	Reset    // closing because of a reset that data in sequence would refute
	Paired   // stands in the list of those that share mapping and remote address
	Hairpin  // the remote endpoint is an external address of weir's own
	Asked    // TCP: a SYN is the last that the instance said
	OnLink   // the remote address lies in a prefix of an outside port's own
	Refresh  // packets from outside refresh it too
	Given    // TCP: closed, it has let go of its mapping, and stays for its own endpoints alone
	Bound    // the instance's packets must have the MAC configured for it: its neighbor entry's
	Forward  // through a port that always leads to the instance: it holds no mapping
)

// ShortInside and ShortOutside are the flags with which a session's packets may go the short way,
// from inside and from outside: the short way does all that the long one would. Any other flag, and
// any new one until it is in these lists, sends them the long way.
const (
	ShortInside  = SNAT | FromOutside | SeenInside | SeenOutside | FinInside | FinOutside | Draining | Reset | Paired | Refresh | Bound | Forward
	ShortOutside = ShortInside | OnLink
)

// Session is both directions of one translated flow. The first line has the two keys and what a
// packet's rewriting needs; the second what changes or is needed less often.
type Session struct {
	Private, Remote, External inet.Addr

	word uint64 // private port, remote port<<16, external port<<32, protocol<<48, State<<56; 0: free
	VPC  uint32 // slot of the VPC, part of the inside key
	Last uint32 // millisecond of the last packet that refreshed it

	// Second line.
	Generation  uint32       // the generation it was checked against: its number's lower half
	Instance    uint32       // slot of the instance whose limit it counts in
	Neighbor    uint32       // slot of the neighbor entry that leads to the instance
	Delivery                 // both ways out
	Mapping     uint32       // the mapping that it uses, or None: 1:1, or a port that is overloaded
	Prev, Next  uint32       // unconfirmed: list of the instance's, oldest first; else of those that share mapping and remote address; None ends it
	Created     uint32       // millisecond
	Drain       uint32       // Draining: millisecond at which it ends
	End         [2]uint32    // TCP, of the inside and the outside: one past the highest sequence number sent
	Ack         [2]uint32    // and the highest acknowledgment sent; before any, what the other's SYN calls for
	Delta       header.Delta // what the outbound rewriting does to the transport checksum
	HeaderDelta header.Delta // and to the IPv4 header checksum: addresses alone
	Flags       uint16
	Timer       uint8 // UDP: which of the timeouts by remote port holds; 0: that of its state
	_           uint8 // nobody's yet
}

// Delivery is how a session's packets leave. A generation decides it, and Adjust notes it again in
// every session that meets a newer one, so it may name the generation's tables.
type Delivery struct {
	At       attach.Word // where the instance is; nothing else may send from its address
	Link     uint16      // the way to it: MTU and, through a tunnel, endpoint and outer header
	HopGroup uint16      // the next hops that lead to the remote address
}

// None is no session.
const None = ^uint32(0)

// Word packs the ports, protocol and state of a session as Publish takes them.
func Word(privatePort, remotePort, externalPort uint16, proto uint8, state State) uint64 {
	return uint64(privatePort) | uint64(remotePort)<<16 | uint64(externalPort)<<32 | uint64(proto)<<48 | uint64(state)<<56
}

const (
	insideMask  = 0x00ff_0000_ffff_ffff
	outsideMask = 0x00ff_ffff_ffff_0000
	pairMask    = 0x00ff_ffff_0000_0000
	stateShift  = 56
)

// Load reads the word for a process that does not own the table; zero means free.
func (s *Session) Load() uint64 { return atomic.LoadUint64(&s.word) }

// State and the others below are for the owner.
func (s *Session) State() State         { return State(s.word >> stateShift) }
func (s *Session) Proto() uint8         { return uint8(s.word >> 48) }
func (s *Session) PrivatePort() uint16  { return uint16(s.word) }
func (s *Session) RemotePort() uint16   { return uint16(s.word >> 16) }
func (s *Session) ExternalPort() uint16 { return uint16(s.word >> 32) }

// Closed reports whether a TCP connection was closed properly: both sides have sent a FIN and
// acknowledged the other's.
func (s *Session) Closed() bool {
	const fins = FinInside | FinOutside
	return s.Flags&Given != 0 ||
		s.State() == TCPClosing && s.Flags&(fins|Reset) == fins && s.Ack[1] == s.End[0] && s.Ack[0] == s.End[1]
}

// SetState moves a live session to another state.
func (s *Session) SetState(st State) {
	atomic.StoreUint64(&s.word, s.word&^(0xff<<stateShift)|uint64(st)<<stateShift)
}

// ProtoOf and ExternalPortOf read a word that Load returned.
func ProtoOf(word uint64) uint8         { return uint8(word >> 48) }
func ExternalPortOf(word uint64) uint16 { return uint16(word >> 32) }

// Key names one direction of a flow: on the inside VPC, private and remote address and port; on the
// outside external and remote address and port, with VPC 0.
type Key struct {
	Local, Remote inet.Addr
	word          uint64 // in the place and under the mask of Session.word
	mask          uint64
	VPC           uint32
}

// InsideKey is the key of a packet from inside. Ports are in host order; echo identifiers stand in
// the private port, with remote port 0.
func InsideKey(vpc uint32, private, remote inet.Addr, privatePort, remotePort uint16, proto uint8) (k Key) {
	k.SetInside(vpc, private, remote, privatePort, remotePort, proto)
	return k
}

// OutsideKey is the key of a packet from outside.
func OutsideKey(external, remote inet.Addr, externalPort, remotePort uint16, proto uint8) (k Key) {
	k.SetOutside(external, remote, externalPort, remotePort, proto)
	return k
}

// SetInside makes k an InsideKey in place.
func (k *Key) SetInside(vpc uint32, private, remote inet.Addr, privatePort, remotePort uint16, proto uint8) {
	k.Local, k.Remote, k.mask, k.VPC = private, remote, insideMask, vpc
	k.word = uint64(privatePort) | uint64(remotePort)<<16 | uint64(proto)<<48
}

// SetOutside makes k an OutsideKey in place.
func (k *Key) SetOutside(external, remote inet.Addr, externalPort, remotePort uint16, proto uint8) {
	k.Local, k.Remote, k.mask, k.VPC = external, remote, outsideMask, 0
	k.word = uint64(externalPort)<<32 | uint64(remotePort)<<16 | uint64(proto)<<48
}

// pairKey is what all sessions of a mapping with one remote address have in common.
func pairKey(external, remote inet.Addr, externalPort uint16, proto uint8) Key {
	return Key{Local: external, Remote: remote, mask: pairMask, word: uint64(externalPort)<<32 | uint64(proto)<<48}
}

func (s *Session) pair() Key { return pairKey(s.External, s.Remote, s.ExternalPort(), s.Proto()) }

// Names reports whether k is the key of a direction of s, and s is live.
func (k *Key) Names(s *Session) bool {
	if s.word&k.mask != k.word || s.Remote != k.Remote || s.word>>stateShift == 0 {
		return false
	}
	if k.mask == insideMask {
		return s.Private == k.Local && s.VPC == k.VPC
	}
	return s.External == k.Local
}

// keys returns the two keys of s.
func (s *Session) keys() (inside, outside Key) {
	p := s.Proto()
	return InsideKey(s.VPC, s.Private, s.Remote, s.PrivatePort(), s.RemotePort(), p),
		OutsideKey(s.External, s.Remote, s.ExternalPort(), s.RemotePort(), p)
}

// A session is two cache lines, a bucket one: this does not compile when either changes.
var (
	_ [0]byte = [unsafe.Sizeof(Session{}) - 128]byte{}
	_ [0]byte = [unsafe.Sizeof(bucket{}) - 64]byte{}
)
