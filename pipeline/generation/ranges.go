// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"net/netip"
	"slices"

	"weir/pipeline/inet"
)

// rangeItem is a prefix on its way into a range table.
type rangeItem struct {
	first, last inet.Addr
	result      uint32 // 1 + index
}

func itemOf(p netip.Prefix, result uint32) rangeItem {
	first, last := inet.PrefixRange(p)
	return rangeItem{first, last, result}
}

// addTable appends a range table and returns its index; an empty one is NoTable.
func (b *builder) addTable(items []rangeItem) uint32 {
	if len(items) == 0 {
		return NoTable
	}
	b.ranges = append(b.ranges, b.rangeTable(items))
	return uint32(len(b.ranges) - 1)
}

// rangeTable flattens nested prefixes, no two of them equal, into disjoint ranges, the longest
// prefix on top.
func (b *builder) rangeTable(items []rangeItem) rangeTable {
	slices.SortFunc(items, func(x, y rangeItem) int {
		switch {
		case x.first.Less(y.first):
			return -1
		case y.first.Less(x.first):
			return 1
		case y.last.Less(x.last): // the shorter prefix first
			return -1
		}
		return 1
	})
	first := uint32(len(b.starts))
	emit := func(at inet.Addr, result uint32) {
		n := uint32(len(b.starts))
		switch {
		case n > first && b.starts[n-1] == at:
			b.results[n-1] = result
		case n > first && b.results[n-1] == result:
		default:
			b.starts, b.results = append(b.starts, at), append(b.results, result)
		}
	}
	var open []rangeItem
	end := func() { // the innermost open prefix ends; what is around it goes on
		last := open[len(open)-1].last
		open = open[:len(open)-1]
		if next := last.Next(); next != (inet.Addr{}) {
			result := uint32(0)
			if len(open) > 0 {
				result = open[len(open)-1].result
			}
			emit(next, result)
		}
	}
	for _, it := range items {
		for len(open) > 0 && open[len(open)-1].last.Less(it.first) {
			end()
		}
		emit(it.first, it.result)
		open = append(open, it)
	}
	for len(open) > 0 {
		end()
	}
	return rangeTable{span{first, uint32(len(b.starts)) - first}}
}

// Find returns 1 + the index that table maps a to, or 0.
func (g *Generation) Find(table uint32, a inet.Addr) uint32 {
	if table == NoTable {
		return 0
	}
	t := g.ranges[table]
	starts := g.starts[t.First:t.End()]
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
