// SPDX-License-Identifier: Apache-2.0

// Package attach names attachments: where a VPC's packets come and go, or the Internet's.
package attach

import "fmt"

// Word is an attachment: port (5 bits), kind (3), tag (24). It is the same in every generation, so
// what outlives a generation (neighbors, probes, held packets, messages on rings) is keyed by it.
type Word uint32

// Kind says how frames of an attachment differ from plain ones.
type Kind uint8

// Kinds of attachments. None has a kind that is not one of them.
const (
	Untagged Kind = iota
	VLAN          // tag: the VID
	QinQ          // tag: the outer VID<<12 | the inner one
	VXLAN         // tag: the VNI
	Geneve        // likewise
	numKinds
)

// None is no attachment.
const None = ^Word(0)

// Make returns the word of a tag on a port.
func Make(port int, kind Kind, tag uint32) Word {
	return Word(port)<<27 | Word(kind)<<24 | Word(tag)&0xffffff
}

// Port returns the word of a port's plain frames.
func Port(port int) Word { return Word(port) << 27 }

// Port returns the index of the port.
func (w Word) Port() int { return int(w >> 27) }

// Kind returns how its frames are tagged.
func (w Word) Kind() Kind { return Kind(w >> 24 & 7) }

// Tag returns the 24 bits that tell attachments of one port and kind apart.
func (w Word) Tag() uint32 { return uint32(w & 0xffffff) }

// Plain reports whether its frames have neither tag nor outer header.
func (w Word) Plain() bool { return w>>24&7 == 0 }

// Tunnel reports whether its frames travel in UDP packets.
func (w Word) Tunnel() bool { return w.Kind() >= VXLAN }

// Outer returns the VID of a tagged frame's first tag, 0 when there is none.
func (w Word) Outer() uint16 {
	switch w.Kind() {
	case VLAN:
		return uint16(w.Tag())
	case QinQ:
		return uint16(w.Tag() >> 12)
	}
	return 0
}

// Inner returns the VID of the second tag, 0 when there is none.
func (w Word) Inner() uint16 {
	if w.Kind() == QinQ {
		return uint16(w.Tag() & 0xfff)
	}
	return 0
}

func (w Word) String() string {
	switch w.Kind() {
	case Untagged:
		return fmt.Sprintf("port %d", w.Port())
	case VLAN:
		return fmt.Sprintf("port %d, VLAN %d", w.Port(), w.Tag())
	case QinQ:
		return fmt.Sprintf("port %d, VLAN %d.%d", w.Port(), w.Outer(), w.Inner())
	case VXLAN:
		return fmt.Sprintf("port %d, VXLAN %d", w.Port(), w.Tag())
	case Geneve:
		return fmt.Sprintf("port %d, Geneve %d", w.Port(), w.Tag())
	}
	return "nowhere"
}
