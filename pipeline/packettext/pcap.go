// SPDX-License-Identifier: Apache-2.0

package packettext

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// maxFrame is the longest frame that libpcap reads (its MAXIMUM_SNAPLEN).
const maxFrame = 262144

// Record is one frame of a capture.
type Record struct {
	Time  time.Duration // since the capture's epoch, its timestamp 0
	Frame []byte
}

// ReadPcap reads a whole Ethernet pcap file, of micro- or nanoseconds and either byte order. A
// capture that holds less than a frame had on the wire is refused, as its packets are not what was
// sent.
func ReadPcap(r io.Reader) ([]Record, error) {
	p, err := pcapgo.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("pcap header: %w; want a pcap file, not pcapng", err)
	}
	if p.LinkType() != layers.LinkTypeEthernet {
		return nil, fmt.Errorf("pcap header: link type %d; want Ethernet (1)", p.LinkType())
	}
	var records []Record
	for {
		frame, info, err := p.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return records, nil
		}
		if err != nil {
			return nil, fmt.Errorf("pcap record %d: %w", len(records), err)
		}
		if info.CaptureLength != info.Length {
			return nil, fmt.Errorf("pcap record %d: holds %d of %d bytes; capture whole frames (tcpdump -s 0)",
				len(records), info.CaptureLength, info.Length)
		}
		records = append(records, Record{time.Duration(info.Timestamp.UnixNano()), frame})
	}
}

// ReadPcapFile is ReadPcap of the file with this name, which errors tell.
func ReadPcapFile(name string) ([]Record, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	records, err := ReadPcap(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return records, nil
}

// WritePcap writes a nanosecond pcap file of Ethernet frames, little-endian. Times go from 0 to
// 2^32-1 seconds.
func WritePcap(w io.Writer, records []Record) error {
	p := pcapgo.NewWriterNanos(w)
	if err := p.WriteFileHeader(maxFrame, layers.LinkTypeEthernet); err != nil {
		return fmt.Errorf("pcap header: %w", err)
	}
	for i, r := range records {
		if r.Time < 0 || r.Time/time.Second > math.MaxUint32 {
			return fmt.Errorf("pcap record %d: time %v; want 0 to 2^32-1 seconds", i, r.Time)
		}
		if len(r.Frame) > maxFrame {
			return fmt.Errorf("pcap record %d: %d bytes; want at most %d", i, len(r.Frame), maxFrame)
		}
		info := gopacket.CaptureInfo{Timestamp: time.Unix(0, int64(r.Time)), CaptureLength: len(r.Frame), Length: len(r.Frame)}
		if err := p.WritePacket(info, r.Frame); err != nil {
			return fmt.Errorf("pcap record %d: %w", i, err)
		}
	}
	return nil
}
