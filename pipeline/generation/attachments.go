// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"math/bits"

	"weir/config"
	"weir/pipeline/attach"
)

// WordOf returns the word of an attachment.
func WordOf(a *config.Attachment) attach.Word {
	switch a.Encap {
	case config.VXLAN:
		return attach.Make(a.Port, attach.VXLAN, a.Tunnel.VNI)
	case config.Geneve:
		return attach.Make(a.Port, attach.Geneve, a.Tunnel.VNI)
	}
	return wordOf(a.Port, a.VLAN)
}

// PortWord returns the word of an outside port's frames, and of an inside port's plain ones.
func PortWord(i int, p *config.Port) attach.Word { return wordOf(i, p.VLAN) }

func wordOf(port int, v config.VLAN) attach.Word {
	switch {
	case v.Inner != 0:
		return attach.Make(port, attach.QinQ, uint32(v.Outer)<<12|uint32(v.Inner))
	case v.Outer != 0:
		return attach.Make(port, attach.VLAN, uint32(v.Outer))
	}
	return attach.Port(port)
}

// wayOf returns the way to what is on an attachment.
func (b *builder) wayOf(a *config.Attachment) way {
	w := way{WordOf(a), uint16(a.Port)}
	if a.PCP != config.KeepPCP {
		w.link = b.link(Link{MTU: b.Ports[a.Port].MTU, PCP: a.PCP})
	}
	return w
}

// link returns the number of a link.
func (b *builder) link(l Link) uint16 {
	if b.links == nil {
		b.links = map[Link]uint16{}
		for i := range b.Links {
			b.links[b.Links[i]] = uint16(i)
		}
	}
	i, known := b.links[l]
	if !known {
		i = uint16(len(b.Links))
		b.Links, b.links[l] = append(b.Links, l), i
	}
	return i
}

// addAttachment notes an attachment. The table of tags is made when all are there.
func (b *builder) addAttachment(a Attachment) {
	if a.At.Plain() {
		b.Ports[a.At.Port()].Own = Place{a.At, uint32(len(b.Attachments))}
	} else {
		b.Ports[a.At.Port()].Tagged = true
	}
	b.Attachments = append(b.Attachments, a)
}

func (b *builder) buildTags() {
	b.tags = make(table[uint32], 1<<bits.Len(uint(2*len(b.Attachments)+1)))
	mask := uint32(len(b.tags) - 1)
	for i := range b.Attachments {
		slot := tagHash(b.Attachments[i].At) & mask
		for b.tags[slot] != 0 {
			slot = (slot + 1) & mask
		}
		b.tags[slot] = uint32(i) + 1
	}
}

// tagHash spreads words. An operator chooses the words that are in the table, so it takes no
// secret.
func tagHash(at attach.Word) uint32 {
	h := uint64(at) * 0x9e3779b97f4a7c15
	return uint32(h >> 32)
}

// Attachment returns the index of an attachment, or false.
func (g *Generation) Attachment(at attach.Word) (uint32, bool) {
	mask := uint32(len(g.tags) - 1)
	for slot := tagHash(at) & mask; ; slot = (slot + 1) & mask {
		i := g.tags[slot]
		if i == 0 {
			return 0, false
		}
		if g.Attachments[i-1].At == at {
			return i - 1, true
		}
	}
}

// group returns the number of a set of outside ports.
func (g *Generation) group(ports uint32) uint16 {
	for i := range g.Groups {
		if g.Groups[i].Ports == ports {
			return uint16(i)
		}
	}
	return 0
}
