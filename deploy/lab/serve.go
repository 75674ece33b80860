// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// Service answers on addresses of a namespace. Each of its functions may be nil: nobody listens
// then.
type Service struct {
	Port uint16
	UDP  func(datagram []byte, from netip.AddrPort) (answer []byte)
	TCP  func(*net.TCPConn)                                    // in a goroutine for each connection, which is closed after it
	Ping func(data []byte, from netip.Addr, identifier uint16) // sees echo requests; the kernel answers them
}

// Serve starts the service. stop ends it.
func (n *Namespace) Serve(s Service, addresses ...netip.Addr) (stop func(), err error) {
	var open []interface{ Close() error }
	stop = func() {
		for _, c := range open {
			c.Close()
		}
	}
	err = n.Do(func() error {
		for _, a := range addresses {
			at := netip.AddrPortFrom(a, s.Port)
			if s.UDP != nil {
				c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
				if err != nil {
					return err
				}
				open = append(open, c)
				c.SetReadBuffer(1 << 20)
				go s.serveUDP(c)
			}
			if s.TCP != nil {
				l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
				if err != nil {
					return err
				}
				open = append(open, l)
				go s.serveTCP(l)
			}
			if s.Ping != nil {
				c, err := net.ListenIP(icmp(a), &net.IPAddr{IP: a.AsSlice()})
				if err != nil {
					return err
				}
				open = append(open, c)
				go s.seePings(c, a.Is4())
			}
		}
		return nil
	})
	if err != nil {
		stop()
		return nil, n.fault("listen", err)
	}
	return stop, nil
}

func (s Service) serveUDP(c *net.UDPConn) {
	b := make([]byte, 1<<16)
	for {
		k, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // else an ICMP error about an answer
			plain := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			c.WriteToUDPAddrPort(s.UDP(b[:k], plain), from)
		}
	}
}

func (s Service) serveTCP(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			s.TCP(c)
		}()
	}
}

func (s Service) seePings(c *net.IPConn, v4 bool) {
	b := make([]byte, 2048)
	for {
		k, from, err := c.ReadFromIP(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && k >= echoHeader && b[0] == echoType(v4, true) {
			source, _ := netip.AddrFromSlice(from.IP)
			s.Ping(b[echoHeader:k], source.Unmap(), binary.BigEndian.Uint16(b[4:]))
		}
	}
}

// ErrNoAnswer is what a probe returns when nothing came back.
var ErrNoAnswer = errors.New("no answer")

// Ping sends up to tries ICMP echo requests (RFC 792, RFC 4443 section 4) with data from an address
// of the namespace, waits each time, and returns who answered: another address than the one called
// must be seen, not lost.
func (n *Namespace) Ping(from, to netip.Addr, data []byte, tries int, wait time.Duration) (answered netip.Addr, err error) {
	var c *net.IPConn
	err = n.Do(func() (err error) {
		c, err = net.ListenIP(icmp(to), &net.IPAddr{IP: from.AsSlice()})
		return err
	})
	if err != nil {
		return answered, n.fault("ping", err)
	}
	defer c.Close()
	identifier := uint16(rand.Uint32()) // so that flows differ
	b := make([]byte, 2048)
	for sequence := range tries {
		request := EchoRequest(identifier, uint16(sequence), data, to.Is4())
		if _, err := c.WriteToIP(request, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return answered, n.fault("ping", err)
		}
		c.SetReadDeadline(time.Now().Add(wait))
		for {
			k, source, err := c.ReadFromIP(b)
			if err != nil {
				break // this one is lost
			}
			if k >= echoHeader && b[0] == echoType(to.Is4(), false) &&
				binary.BigEndian.Uint16(b[4:]) == identifier && bytes.Equal(b[echoHeader:k], data) {
				address, _ := netip.AddrFromSlice(source.IP)
				return address.Unmap(), nil
			}
		}
	}
	return answered, ErrNoAnswer
}

const echoHeader = 8 // type, code, checksum, identifier, sequence number

// EchoRequest builds an ICMP echo request. The kernel fills in ICMPv6's checksum, as it covers a
// pseudo-header.
func EchoRequest(identifier, sequence uint16, data []byte, v4 bool) []byte {
	b := make([]byte, echoHeader, echoHeader+len(data))
	b[0] = echoType(v4, true)
	binary.BigEndian.PutUint16(b[4:], identifier)
	binary.BigEndian.PutUint16(b[6:], sequence)
	b = append(b, data...)
	if v4 {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		if i%2 == 0 {
			sum += uint32(c) << 8
		} else {
			sum += uint32(c)
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func icmp(a netip.Addr) string {
	if a.Is4() {
		return "ip4:icmp"
	}
	return "ip6:ipv6-icmp"
}

func echoType(v4, request bool) byte {
	switch {
	case v4 && request:
		return 8
	case v4:
		return 0
	case request:
		return 128
	}
	return 129
}
