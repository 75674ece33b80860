// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/attach"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// MaxBurst is the most packets of one burst.
const MaxBurst = session.MaxBatch

// Burst is what one receive call brought, all from one port. The caller sets Port, N and, of each
// packet, Data and Handle, and calls Worker.Process; the rest is the pipeline's notes.
type Burst struct {
	Port int
	N    int

	Packets [MaxBurst]Packet

	inside    bool    // it came from a VPC's side; a hairpinned one goes on as if from outside
	opened    bool    // tags and outer headers are off: another worker had it first
	live      []uint8 // indexes of the packets that still go on
	back      []uint8 // of those that turn back
	fragments bool    // there may be fragments among them
	index     [MaxBurst]uint8
	turned    [MaxBurst]uint8
}

// begin forgets the notes about earlier packets. inside says from which side the burst's packets
// come.
func (b *Burst) begin(inside bool) {
	b.inside, b.opened, b.fragments = inside, false, false
	b.live, b.back = b.index[:0], b.turned[:0]
}

// Packet is one frame and what the stages found out about it. "Local" is the VPC's side of a flow:
// private addresses inside, ours outside; "remote" is the Internet's.
type Packet struct {
	Data   []byte  // the frame; aliases the caller's buffer, and is rewritten there
	Handle uintptr // the caller's name of the buffer
	Long   bool    // Data is only the first buffer of a longer frame
	Front  uint16  // how much room is before Data in its buffer: what tags and outer headers take

	marks

	// classify
	from       generation.Place
	via        uint16 // the link of the endpoint that it came from, through a tunnel
	tci        uint16 // PCP and DEI that it came with, in their place in a tag
	family     inet.Family
	proto      uint8
	kind       kind
	tcpFlags   uint8
	local      inet.Addr
	remote     inet.Addr
	localPort  uint16 // TCP and UDP port or ICMP echo identifier, in host order; else 0
	remotePort uint16 // likewise; 0 for ICMP
	transport  uint16 // offset of the transport header in Data
	hash       uint64 // of the session key; also spreads flows over next hops

	// look-up, route, select
	act         action
	newPort     uint16       // of the local side
	delta       header.Delta // what rewrite does to the transport's checksum
	headerDelta header.Delta // and to the IPv4 header's
	newAddr     inet.Addr
	ports       uint32 // actOut: outside ports it may leave by
	to          way
	neighbor    uint32    // actIn: slot; NoNeighbor: look hop up
	hop         inet.Addr // next hop's address where neighbor is NoNeighbor

	quote quote // classify: of an ICMP error

	// fragments only
	more     bool      // it is not the last one
	at, size uint16    // its bytes in the datagram
	id       uint32    // the datagram's identification
	datagram *datagram // what is known of it; nil: it is not tracked
}

// way is where a packet goes: an attachment, or an outside port, and the link on it.
type way struct {
	at   attach.Word // attach.None: nowhere
	link uint16
}

// marks are what is true of a packet or not; one store clears them.
type marks struct {
	expired    bool // TTL or hop limit is used up: it goes no further than to weir itself
	pinned     bool // no translation leaves it intact
	plain      bool // parsePlain has taken it: it may go the short way, if it has a session
	fragmented bool // a piece of a datagram
	noSum      bool // UDP over IPv6 without a checksum
	hairpin    bool // from inside, to an external address of weir: it turns back
	turned     bool // it has turned back, and is as if from outside
	shared     bool // actOut: the new address is shared with other instances
	long       bool // longer than the next link's MTU
}

// kind is what a packet's transport is to the translation.
type kind uint8

const (
	kindOther kind = iota // no ports: any protocol that is not below
	kindTCP
	kindUDP
	kindEchoRequest // or ICMP timestamp request
	kindEchoReply   // or ICMP timestamp reply
	kindPiece       // a later fragment: no transport header
	kindError       // ICMP error that is translated by what it quotes
	kindICMP        // any other ICMP
)

// action is what the stages decided to do with a packet.
type action uint8

const (
	actNone     action = iota
	actOut             // rewrite the local address as source, leave by an outside port
	actIn              // rewrite the local address as destination, leave by the instance's port
	actOutPlain        // leave by an outside port as it is: attached prefix
	actInPlain         // to an instance as it is: attached prefix, VPC-internal
	actReset           // a reset from outside that does not fit its session: dropped
)

// TCP flags.
const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
	tcpURG
)

// Queue is what is to be sent through one port, in order. The driver sends it and calls
// Worker.Sent.
type Queue struct {
	N       int
	Handles [queueSize]uintptr
	Frames  [queueSize][]byte // what to send of each; at the start of its buffer

	bytes  uint64                 // of all of them
	extra  [queueSize / 64]uint64 // which of them are further pieces of the packet before them
	extras int                    // how many
	own    [queueSize / 64]uint64 // which of them weir itself says
	owns   int                    // how many
}

// queueSize lets a queue take a whole burst, the fragments that waited for it, and the pieces of
// packets that are too long.
const queueSize = 8 * MaxBurst

// It does not compile when the queue is too short.
const _ = uint(queueSize - MaxBurst - 2*maxWaiting - MaxBurst - MaxSpare)
