// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Every machine of the playground answers on this port, UDP and TCP (RFC 862's).
const echoPort = 7

// How long a probe waits: five datagrams, as the first may be lost to address resolution; for TCP two
// retransmissions of a lost SYN.
const (
	datagrams       = 5
	datagramTimeout = 400 * time.Millisecond
	connectTimeout  = 4 * time.Second
)

// journal notes what arrived where it listens: for each probe's token the source it came from.
// For ICMP the "port" is the identifier.
type journal struct {
	mu   sync.Mutex
	saw  map[string]netip.AddrPort
	open []io.Closer
}

func (j *journal) note(token string, from netip.AddrPort) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.saw[token] = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// take returns the source that the token arrived from, and forgets it. It looks twice, as the kernel's answer to a
// ping may be here before the note.
func (j *journal) take(token string) (netip.AddrPort, bool) {
	for attempt := 0; ; attempt++ {
		j.mu.Lock()
		from, ok := j.saw[token]
		delete(j.saw, token)
		j.mu.Unlock()
		if ok || attempt == 1 {
			return from, ok
		}
		time.Sleep(datagramTimeout)
	}
}

func (j *journal) Close() {
	for _, c := range j.open {
		c.Close()
	}
}

// listen answers UDP and TCP on the addresses, in the namespace, with "TOKEN SOURCE": the token of the probe and
// the source it came from. It also notes ICMP echo requests; the kernel answers those.
func listen(n *namespace, addresses ...netip.Addr) (*journal, error) {
	j := &journal{saw: map[string]netip.AddrPort{}}
	err := n.do(func() error {
		for _, a := range addresses {
			at := netip.AddrPortFrom(a, echoPort)
			udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			if err != nil {
				return err
			}
			j.open = append(j.open, udp)
			tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
			if err != nil {
				return err
			}
			j.open = append(j.open, tcp)
			icmp, err := net.ListenIP(icmpNetwork(a), &net.IPAddr{IP: a.AsSlice()})
			if err != nil {
				return err
			}
			j.open = append(j.open, icmp)
			go j.answerUDP(udp)
			go j.answerTCP(tcp)
			go j.noteEchoRequests(icmp, a.Is4())
		}
		return nil
	})
	if err != nil {
		j.Close()
		return nil, err
	}
	return j, nil
}

func (j *journal) answerUDP(c *net.UDPConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		token := string(b[:n])
		j.note(token, from)
		c.WriteToUDPAddrPort([]byte(answer(token, from)), from)
	}
}

func (j *journal) answerTCP(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(connectTimeout))
			token, err := bufio.NewReader(c).ReadString('\n')
			if err != nil {
				return
			}
			token = strings.TrimSpace(token)
			from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
			j.note(token, from)
			fmt.Fprintln(c, answer(token, from))
		}()
	}
}

func (j *journal) noteEchoRequests(c *net.IPConn, v4 bool) {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromIP(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < echoHeader || b[0] != echoRequestType(v4) {
			continue
		}
		source, _ := netip.AddrFromSlice(from.IP)
		j.note(string(b[echoHeader:n]), netip.AddrPortFrom(source, binary.BigEndian.Uint16(b[4:])))
	}
}

func answer(token string, from netip.AddrPort) string {
	return fmt.Sprintf("%s %s", token, from.Addr().Unmap())
}

// reply is what came back to a probe.
type reply struct {
	from netip.Addr // who answered
	saw  netip.Addr // the source that the other side saw; invalid for ping, where nobody says
}

var errNoAnswer = errors.New("no answer")

// probe sends one flow carrying the token from an address of the namespace to another machine.
func (n *namespace) probe(protocol, token string, from, to netip.Addr) (reply, error) {
	var r reply
	err := n.do(func() (err error) {
		switch protocol {
		case "udp":
			r, err = probeUDP(token, from, to)
		case "tcp":
			r, err = probeTCP(token, from, to)
		case "ping":
			r, err = ping(token, from, to)
		default:
			err = fmt.Errorf("protocol %q: expected udp, tcp or ping", protocol)
		}
		return err
	})
	return r, err
}

// probeUDP uses an unconnected socket: an answer from another address than the one called must be seen, not lost.
func probeUDP(token string, from, to netip.Addr) (reply, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
	if err != nil {
		return reply{}, err
	}
	defer c.Close()
	b := make([]byte, 2048)
	for range datagrams {
		if _, err := c.WriteToUDPAddrPort([]byte(token), netip.AddrPortFrom(to, echoPort)); err != nil {
			return reply{}, err
		}
		c.SetReadDeadline(time.Now().Add(datagramTimeout))
		if n, source, err := c.ReadFromUDPAddrPort(b); err == nil {
			return parseAnswer(token, string(b[:n]), source.Addr())
		}
	}
	return reply{}, errNoAnswer
}

func probeTCP(token string, from, to netip.Addr) (reply, error) {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: connectTimeout}
	c, err := dialer.Dial("tcp", netip.AddrPortFrom(to, echoPort).String())
	if errors.Is(err, unix.ECONNREFUSED) {
		return reply{}, err // somebody did answer
	}
	if err != nil {
		return reply{}, errNoAnswer // also when the gateway says "administratively prohibited"
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(connectTimeout))
	fmt.Fprintln(c, token)
	text, err := io.ReadAll(c)
	if err != nil {
		return reply{}, fmt.Errorf("connected, but: %w", err)
	}
	return parseAnswer(token, string(text), to)
}

func parseAnswer(token, text string, source netip.Addr) (reply, error) {
	source = source.Unmap()
	echoed, seen, _ := strings.Cut(strings.TrimSpace(text), " ")
	saw, err := netip.ParseAddr(seen)
	if err != nil || echoed != token {
		return reply{}, fmt.Errorf("answer %q from %s: expected %q and the address seen there", text, source, token)
	}
	return reply{source, saw}, nil
}

// ping sends ICMP echo requests (RFC 792, RFC 4443 section 4) with the token as their data.
func ping(token string, from, to netip.Addr) (reply, error) {
	c, err := net.ListenIP(icmpNetwork(to), &net.IPAddr{IP: from.AsSlice()})
	if err != nil {
		return reply{}, err
	}
	defer c.Close()
	b := make([]byte, 2048)
	for sequence := range datagrams {
		request := echoRequest(token, uint16(sequence), to.Is4())
		if _, err := c.WriteToIP(request, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return reply{}, err
		}
		c.SetReadDeadline(time.Now().Add(datagramTimeout))
		for {
			n, source, err := c.ReadFromIP(b)
			if err != nil {
				break // this one is lost
			}
			if n >= echoHeader && b[0] == echoReplyType(to.Is4()) && bytes.Equal(b[echoHeader:n], []byte(token)) {
				address, _ := netip.AddrFromSlice(source.IP)
				return reply{from: address.Unmap()}, nil
			}
		}
	}
	return reply{}, errNoAnswer
}

const echoHeader = 8 // type, code, checksum, identifier, sequence number

// echoRequest builds an echo request whose identifier is drawn from the token, so that flows differ. The kernel
// fills in ICMPv6's checksum, as it covers a pseudo-header.
func echoRequest(token string, sequence uint16, v4 bool) []byte {
	b := make([]byte, echoHeader, echoHeader+len(token))
	b[0] = echoRequestType(v4)
	identifier := uint32(2166136261) // FNV-1a
	for _, c := range []byte(token) {
		identifier = (identifier ^ uint32(c)) * 16777619
	}
	binary.BigEndian.PutUint16(b[4:], uint16(identifier^identifier>>16))
	binary.BigEndian.PutUint16(b[6:], sequence)
	b = append(b, token...)
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

func icmpNetwork(a netip.Addr) string {
	if a.Is4() {
		return "ip4:icmp"
	}
	return "ip6:ipv6-icmp"
}

func echoRequestType(v4 bool) byte {
	if v4 {
		return 8
	}
	return 128
}

func echoReplyType(v4 bool) byte {
	if v4 {
		return 0
	}
	return 129
}
