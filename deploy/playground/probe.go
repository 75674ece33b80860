// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weir/deploy/lab"
)

// Every machine of the playground answers on this port, UDP and TCP (RFC 862's).
const echoPort = 7

// How long a probe waits: five datagrams, as the first may be lost to address resolution; for TCP
// two retransmissions of a lost SYN.
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
	stop func()
}

func (j *journal) note(token string, from netip.AddrPort) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.saw[token] = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// take returns the source that the token arrived from, and forgets it. It looks twice, as the
// kernel's answer to a ping may be here before the note.
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

func (j *journal) Close() { j.stop() }

// listen answers UDP and TCP on the addresses, in the namespace, with "TOKEN SOURCE": the token of
// the probe and the source it came from. It also notes ICMP echo requests; the kernel answers
// those.
func listen(n *lab.Namespace, addresses ...netip.Addr) (*journal, error) {
	j := &journal{saw: map[string]netip.AddrPort{}}
	var err error
	j.stop, err = n.Serve(lab.Service{
		Port: echoPort,
		UDP: func(datagram []byte, from netip.AddrPort) []byte {
			token := string(datagram)
			j.note(token, from)
			return []byte(answer(token, from))
		},
		TCP: j.answerTCP,
		Ping: func(data []byte, from netip.Addr, identifier uint16) {
			j.note(string(data), netip.AddrPortFrom(from, identifier))
		},
	}, addresses...)
	return j, err
}

func (j *journal) answerTCP(c *net.TCPConn) {
	c.SetDeadline(time.Now().Add(connectTimeout))
	token, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	token = strings.TrimSpace(token)
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	j.note(token, from)
	fmt.Fprintln(c, answer(token, from))
}

func answer(token string, from netip.AddrPort) string {
	return fmt.Sprintf("%s %s", token, from.Addr().Unmap())
}

// reply is what came back to a probe.
type reply struct {
	from netip.Addr // who answered
	saw  netip.Addr // the source that the other side saw; invalid for ping, where nobody says
}

// probe sends one flow carrying the token from an address of the namespace to another machine.
func probe(n *lab.Namespace, protocol, token string, from, to netip.Addr) (reply, error) {
	var r reply
	var err error
	switch protocol {
	case "udp":
		err = n.Do(func() (err error) { r, err = probeUDP(token, from, to); return err })
	case "tcp":
		err = n.Do(func() (err error) { r, err = probeTCP(token, from, to); return err })
	case "ping":
		r.from, err = n.Ping(from, to, []byte(token), datagrams, datagramTimeout)
	default:
		err = fmt.Errorf("protocol %q: expected udp, tcp or ping", protocol)
	}
	return r, err
}

// probeUDP uses an unconnected socket: an answer from another address than the one called must be
// seen, not lost.
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
	return reply{}, lab.ErrNoAnswer
}

func probeTCP(token string, from, to netip.Addr) (reply, error) {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: connectTimeout}
	c, err := dialer.Dial("tcp", netip.AddrPortFrom(to, echoPort).String())
	if errors.Is(err, unix.ECONNREFUSED) {
		return reply{}, err // somebody did answer
	}
	if err != nil {
		return reply{}, lab.ErrNoAnswer // also when the gateway says "administratively prohibited"
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
