// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/generation"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// portSpace returns the port space that a packet's local port or identifier belongs to. Other
// protocols have none.
func (p *Packet) portSpace() (session.PortSpace, bool) {
	switch p.kind {
	case kindTCP:
		return session.TCPPorts, true
	case kindUDP:
		return session.UDPPorts, true
	case kindEchoRequest, kindEchoReply:
		return session.EchoIdentifiers, true
	case kindPiece: // the first one's
		return session.SpaceOf(p.proto)
	}
	return 0, false
}

// exhaustion remembers that an instance has no port left towards a remote endpoint.
type exhaustion struct {
	flow   uint64 // instance, protocol, remote port
	remote inet.Addr
	until  int64 // nanoseconds: an entry may lie here until milliseconds come round again
}

const (
	exhaustedNanos = 10e6
	exhaustedBits  = 10
)

// failures counts the searches of an instance that found no port in one millisecond: there are more
// remote endpoints than exhaustions to remember.
type failures struct{ instance, tick, n uint32 }

// maxFailures bounds them.
const maxFailures = 4

// maxPortProbes bounds the search for a port that is overloaded.
const maxPortProbes = 128

// overload picks a port of the ranges at random (RFC 6056 §3.3.2: random start, then a step that
// meets every port once) such that no other session has it with this remote endpoint (RFC 7857 §3),
// else one whose connection is closed and whose last number the SYN exceeds. A search that finds
// nothing is dear: for a while the same question gets the same answer.
func (w *Worker) overload(p *Packet, in *generation.Instance, external inet.Addr, ranges []session.PortRange) bool {
	flow := uint64(in.Slot)<<32 | uint64(p.proto)<<16 | uint64(p.remotePort)
	full := &w.exhausted[(flow^p.remote.Hi^p.remote.Lo)*0x9e3779b97f4a7c15>>(64-exhaustedBits)]
	if full.flow == flow && full.remote == p.remote && w.nanos-full.until < 0 {
		return false
	}
	failed := &w.failed[in.Slot%uint32(len(w.failed))]
	if failed.instance != in.Slot || failed.tick != w.tick {
		*failed = failures{instance: in.Slot, tick: w.tick}
	}
	if failed.n == maxFailures {
		return false
	}
	total := session.Ports(ranges)
	r := w.rand.Uint64()
	at := uint32(r>>32) % total
	step := uint32(r)%total | 1
	for gcd(step, total) != 1 {
		step++ // ends at a prime at the latest
	}
	closed := false
	for range min(total, maxPortProbes) {
		port := session.PortAt(ranges, at)
		key := session.OutsideKey(external, p.remote, port, p.remotePort, p.proto)
		s := w.liveSession(key)
		if s == nil {
			p.newPort = port
			return true
		}
		if !closed && s.State() == session.TCPClosing && s.GivesWay(p.segment().seq) {
			p.newPort, closed = port, true
		}
		if at += step; at >= total {
			at %= total
		}
	}
	if closed {
		return true
	}
	*full = exhaustion{flow, p.remote, w.nanos + exhaustedNanos}
	failed.n++
	return false
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
