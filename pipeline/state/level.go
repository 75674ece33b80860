// SPDX-License-Identifier: Apache-2.0

package state

import "math/bits"

// Share is what a VPC has of one worker's session table. The worker alone writes it.
type Share struct {
	Sessions uint32
	weight   uint16 // that it counts with now
	rank     uint16 // of its sessions by weight
}

// Level is the water level of one worker's session table: the largest T for which the VPCs, of each
// no more than T times its weight, fill seven eighths of it. Who is above has more than everybody
// could have; who is below has less. VPCs stand in ranks by sessions by weight, and each rank has
// sums, so that a session more or less costs the same however many VPCs there are, and the level
// one walk over the ranks. Up to 32 a rank is one number; above, a sixteenth to a thirty-second
// wide. Of a rank that holds the level nobody counts as above.
type Level struct {
	shares []Share // by slot of the VPC
	room   uint64  // seven eighths
	ranks  [numRanks]struct{ sessions, weight uint64 }
	found  uint16 // the rank that holds the level
	moved  bool   // since then somebody has more or less
}

// numRanks is enough for 2^28 sessions.
const numRanks = (28-5)*16 + 32 + 1

// rankOf returns the rank of a number of sessions by weight; 0: none.
func rankOf(n uint32) uint16 {
	if n == 0 {
		return 0
	}
	n--
	up := max(bits.Len32(n), 5) - 5
	return uint16(up<<4) + uint16(n>>up) + 1
}

// top returns the largest number in a rank.
func top(rank int) uint64 {
	if rank == 0 {
		return 0
	}
	rank--
	up := max(rank>>4, 1) - 1
	return uint64(rank-up<<4+1) << up
}

// NewLevel returns the level of a table with room for capacity sessions. The shares, by slot of the
// VPC, are empty.
func NewLevel(shares []Share, capacity int) *Level {
	return &Level{shares: shares, room: uint64(capacity) / 8 * 7, moved: true}
}

// Add counts a session of a VPC more, whose weight may be another than it was.
func (l *Level) Add(vpc uint32, weight uint16) {
	s := &l.shares[vpc]
	l.moved = true
	if s.weight != weight || s.Sessions == 0 {
		l.take(s)
		s.weight = weight
		s.Sessions++
		l.put(s)
		return
	}
	s.Sessions++
	l.move(s, 1)
}

// Weigh lets a VPC count with another weight.
func (l *Level) Weigh(vpc uint32, weight uint16) {
	if s := &l.shares[vpc]; s.weight != weight && s.Sessions != 0 {
		l.take(s)
		s.weight, l.moved = weight, true
		l.put(s)
	}
}

// Remove counts one less.
func (l *Level) Remove(vpc uint32) {
	s := &l.shares[vpc]
	s.Sessions--
	l.moved = true
	l.move(s, ^uint64(0))
}

// move takes a VPC that has delta sessions more than its rank knows of to the rank where it
// belongs.
func (l *Level) move(s *Share, delta uint64) {
	rank := s.rankNow()
	if rank == s.rank {
		l.ranks[rank].sessions += delta
		return
	}
	old := &l.ranks[s.rank]
	old.sessions -= uint64(s.Sessions) - delta
	old.weight -= uint64(s.weight)
	l.put(s)
}

func (s *Share) rankNow() uint16 {
	if s.weight == 1 {
		return rankOf(s.Sessions)
	}
	return rankOf((s.Sessions + uint32(s.weight) - 1) / uint32(s.weight))
}

// take takes a VPC out of its rank.
func (l *Level) take(s *Share) {
	l.ranks[s.rank].sessions -= uint64(s.Sessions)
	l.ranks[s.rank].weight -= uint64(s.weight)
}

// put notes a VPC in its rank.
func (l *Level) put(s *Share) {
	s.rank = s.rankNow()
	l.ranks[s.rank].sessions += uint64(s.Sessions)
	l.ranks[s.rank].weight += uint64(s.weight)
}

// find returns the rank that holds the level; while there is room for all, one above everybody.
func (l *Level) find() uint16 {
	var below, weight uint64
	for i := range l.ranks {
		below += l.ranks[i].sessions
		weight += l.ranks[i].weight
	}
	if below <= l.room {
		return numRanks
	}
	// Downwards: what a level at the top of each rank fills. Those in it and below have what they
	// have, those above it as much as it gives them.
	above := uint64(0)
	for rank := numRanks - 1; rank > 0; rank-- {
		if below+top(rank)*above <= l.room {
			return uint16(rank) + 1
		}
		below -= l.ranks[rank].sessions
		above += l.ranks[rank].weight
	}
	return 1
}

// Above reports whether a VPC is above the level. That is looked for again only when somebody has
// more or less than at the last time.
func (l *Level) Above(vpc uint32) bool {
	if l.moved {
		l.found, l.moved = l.find(), false
	}
	return l.shares[vpc].rank > l.found
}

// Sessions returns how many sessions a VPC has in the table.
func (l *Level) Sessions(vpc uint32) int { return int(l.shares[vpc].Sessions) }
