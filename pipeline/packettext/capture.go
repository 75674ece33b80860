// SPDX-License-Identifier: Apache-2.0

package packettext

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Capture is what a capture file holds.
type Capture struct {
	Records []Record
	Sliced  int // frames of which the file has only a part: they are not what was sent
	Foreign int // frames that hold neither Ethernet nor an IP packet
}

// ReadCaptureFile reads a pcap or pcapng file, also one compressed by gzip. Frames of Linux cooked
// captures (SLL, SLL2) and of links without a header (raw IP) get an Ethernet header: what the
// capture does not know of it is the address 02:00:00:00:00:00.
func ReadCaptureFile(name string) (*Capture, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := readCapture(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// frameReader is either kind of file.
type frameReader interface {
	ReadPacketData() ([]byte, gopacket.CaptureInfo, error)
}

func readCapture(file io.Reader) (*Capture, error) {
	r := bufio.NewReader(file)
	if magic, _ := r.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		r = bufio.NewReader(z)
	}
	frames, link, kind, err := openCapture(r)
	if err != nil {
		return nil, err
	}
	c := &Capture{}
	for n := 1; ; n++ {
		data, info, err := frames.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s record %d: %w", kind, n, err)
		}
		if info.CaptureLength != info.Length {
			c.Sliced++
			continue
		}
		frame, ok := ethernet(link(info), data)
		if !ok {
			c.Foreign++
			continue
		}
		c.Records = append(c.Records, Record{time.Duration(info.Timestamp.UnixNano()), frame})
	}
}

// openCapture begins to read a file of either kind. link tells the link type of a frame.
func openCapture(r *bufio.Reader) (frames frameReader, link func(gopacket.CaptureInfo) layers.LinkType, kind string, err error) {
	const sectionHeader = 0x0a0d0d0a // the same in both byte orders
	if magic, _ := r.Peek(4); len(magic) == 4 && binary.BigEndian.Uint32(magic) == sectionHeader {
		ng, err := pcapgo.NewNgReader(r, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
		if err != nil {
			return nil, nil, "", fmt.Errorf("pcapng header: %w", err)
		}
		return ng, func(info gopacket.CaptureInfo) layers.LinkType {
			i, err := ng.Interface(info.InterfaceIndex)
			if err != nil {
				return layers.LinkTypeNull // which is foreign
			}
			return i.LinkType
		}, "pcapng", nil
	}
	p, err := pcapgo.NewReader(r)
	if err != nil {
		return nil, nil, "", fmt.Errorf("pcap header: %w; expected a pcap or pcapng file, or one of them compressed by gzip", err)
	}
	return p, func(gopacket.CaptureInfo) layers.LinkType { return p.LinkType() }, "pcap", nil
}

// rawBSD is raw IP in files of some systems.
const rawBSD = 12

// ethernet returns a frame of another link as one of Ethernet; false where it cannot be.
func ethernet(link layers.LinkType, data []byte) ([]byte, bool) {
	source := []byte{2, 0, 0, 0, 0, 0}
	switch link {
	case layers.LinkTypeEthernet:
		return data, true
	case layers.LinkTypeLinuxSLL: // type, ARPHRD, address length, address, protocol
		const size = 16
		if len(data) < size {
			return nil, false
		}
		if binary.BigEndian.Uint16(data[4:]) == 6 {
			source = data[6:12]
		}
		return framed(source, binary.BigEndian.Uint16(data[14:]), data[size:])
	case layers.LinkTypeLinuxSLL2: // protocol, reserved, interface, ARPHRD, type, address length, address
		const size = 20
		if len(data) < size {
			return nil, false
		}
		if data[11] == 6 {
			source = data[12:18]
		}
		return framed(source, binary.BigEndian.Uint16(data), data[size:])
	case layers.LinkTypeRaw, layers.LinkTypeIPv4, layers.LinkTypeIPv6, rawBSD:
		if len(data) == 0 {
			return nil, false
		}
		switch data[0] >> 4 {
		case 4:
			return framed(source, uint16(layers.EthernetTypeIPv4), data)
		case 6:
			return framed(source, uint16(layers.EthernetTypeIPv6), data)
		}
	}
	return nil, false
}

// framed puts an Ethernet header before a packet. Below 0x600 a protocol is none of Ethernet's.
func framed(source []byte, protocol uint16, packet []byte) ([]byte, bool) {
	if protocol < 0x600 {
		return nil, false
	}
	frame := make([]byte, 0, 14+len(packet))
	frame = append(frame, 2, 0, 0, 0, 0, 0)
	frame = append(frame, source...)
	frame = binary.BigEndian.AppendUint16(frame, protocol)
	return append(frame, packet...), true
}
