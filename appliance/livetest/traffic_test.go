// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/deploy/lab"
)

// echoPort is where echoes are served.
const echoPort = 7007

// serve runs a service in a namespace until the test ends.
func serve(t *testing.T, n *namespace, s lab.Service, addresses ...netip.Addr) {
	t.Helper()
	stop, err := n.Serve(s, addresses...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
}

// serveEcho serves UDP and TCP echo on addresses of a namespace until the test ends. A UDP answer
// begins with the address that the question came from, as text and a blank.
func serveEcho(t *testing.T, n *namespace, addresses ...netip.Addr) {
	t.Helper()
	serve(t, n, lab.Service{
		Port: echoPort,
		UDP: func(question []byte, from netip.AddrPort) []byte {
			return append(append(from.AppendTo(nil), ' '), question...)
		},
		TCP: func(c *net.TCPConn) { io.Copy(c, c) },
	}, addresses...)
}

// dialUDP connects from an address of a namespace, port 0 for any, to the echo at remote.
func dialUDP(n *namespace, from netip.AddrPort, remote netip.Addr) (c *net.UDPConn, err error) {
	err = n.Do(func() error {
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(netip.AddrPortFrom(remote, echoPort)))
		return err
	})
	return c, err
}

// echoUDP sends one datagram and returns the address that the other side saw it come from. There is
// no second try.
func echoUDP(n *namespace, from, remote netip.Addr) (netip.AddrPort, error) {
	c, err := dialUDP(n, netip.AddrPortFrom(from, 0), remote)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer c.Close()
	return ask(c, "once")
}

// ask sends a question on a connected socket and reads the answer to it.
func ask(c *net.UDPConn, question string) (netip.AddrPort, error) {
	if _, err := c.Write([]byte(question)); err != nil {
		return netip.AddrPort{}, err
	}
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	buf := make([]byte, 2048)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("no echo of one datagram from %v to %v: %w", c.LocalAddr(), c.RemoteAddr(), err)
		}
		seen, text, _ := strings.Cut(string(buf[:n]), " ")
		if text == question {
			return netip.ParseAddrPort(seen)
		}
	}
}

// transferTCP sends size random bytes to the echo at remote and compares what comes back.
func transferTCP(n *namespace, from, remote netip.Addr, size int64) error {
	var c net.Conn
	err := n.Do(func() (err error) {
		d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		c, err = d.Dial("tcp", netip.AddrPortFrom(remote, echoPort).String())
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(3 * patience))
	sent, got := sha256.New(), sha256.New()
	failed := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.MultiWriter(c, sent), rand.NewChaCha8([32]byte{1}), size)
		if err == nil {
			err = c.(*net.TCPConn).CloseWrite()
		}
		failed <- err
	}()
	back, err := io.Copy(got, c)
	if err != nil {
		return fmt.Errorf("TCP from %v to %v: after %d of %d bytes: %w", from, remote, back, size, err)
	}
	if err := <-failed; err != nil {
		return fmt.Errorf("TCP from %v to %v: send: %w", from, remote, err)
	}
	if back != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		return fmt.Errorf("TCP from %v to %v: %d bytes came back of %d, or others", from, remote, back, size)
	}
	return nil
}

// ping sends one echo request and waits for its reply.
func ping(n *namespace, from, remote netip.Addr) error {
	answered, err := n.Ping(from, remote, []byte("weir"), 1, 3*time.Second)
	switch {
	case err != nil:
		return fmt.Errorf("no reply to a ping from %v to %v: %w", from, remote, err)
	case answered != remote:
		return fmt.Errorf("a reply to a ping from %v to %v comes from %v", from, remote, answered)
	}
	return nil
}

// stream is a UDP flow that goes on: a numbered datagram each interval, each echoed.
type stream struct {
	c      *net.UDPConn
	in     *namespace
	before explained // what the kernel had dropped when it began
	stop   chan struct{}
	done   sync.WaitGroup
	over   sync.WaitGroup // sending is

	mu   sync.Mutex
	sent int
	back map[int]bool
	last time.Time // of the last echo
	seen map[netip.AddrPort]bool
}

func startStream(t *testing.T, n *namespace, from, remote netip.Addr, interval time.Duration) *stream {
	t.Helper()
	c, err := dialUDP(n, netip.AddrPortFrom(from, 0), remote)
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{c: c, in: n, before: n.losses.explain(t), stop: make(chan struct{}), back: map[int]bool{}, seen: map[netip.AddrPort]bool{}}
	s.done.Go(s.receive)
	s.over.Go(func() { s.send(interval) })
	t.Cleanup(s.end)
	return s
}

// startFlowing is startStream with a datagram each 5 ms, and returns when it flows.
func startFlowing(t *testing.T, n *namespace, from, remote netip.Addr) *stream {
	t.Helper()
	s := startStream(t, n, from, remote, 5*time.Millisecond)
	eventually(t, patience, "the stream flows", func() error { return atLeast(s.echoed(), 20) })
	return s
}

func (s *stream) send(interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			s.mu.Lock()
			n := s.sent
			s.sent++
			s.mu.Unlock()
			s.c.Write([]byte(strconv.Itoa(n)))
		}
	}
}

func (s *stream) receive() {
	buf := make([]byte, 256)
	for {
		k, err := s.c.Read(buf)
		select {
		case <-s.stop:
			if err != nil {
				return
			}
		default:
			if err != nil {
				continue // an ICMP error, such as while nobody forwards
			}
		}
		from, number, _ := strings.Cut(string(buf[:k]), " ")
		n, err1 := strconv.Atoi(number)
		seen, err2 := netip.ParseAddrPort(from)
		if err1 != nil || err2 != nil {
			continue
		}
		s.mu.Lock()
		s.back[n], s.seen[seen], s.last = true, true, time.Now()
		s.mu.Unlock()
	}
}

// echoed returns how many datagrams have come back.
func (s *stream) echoed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.back)
}

// lastEcho returns when the last datagram came back.
func (s *stream) lastEcho() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// sources returns the addresses that the other side has seen the stream come from.
func (s *stream) sources() (list []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := range s.seen {
		list = append(list, a)
	}
	return list
}

// end stops the stream, waits a while for late echoes, and is for all: idempotent.
func (s *stream) end() {
	select {
	case <-s.stop:
		return
	default:
	}
	close(s.stop)
	s.over.Wait() // else one more may leave after the last look
	for range 200 {
		s.mu.Lock()
		missing := s.sent - len(s.back)
		s.mu.Unlock()
		if missing == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.c.SetReadDeadline(time.Now())
	s.done.Wait()
	s.c.Close()
}

// endAll ends streams side by side.
func endAll(streams []*stream) {
	var done sync.WaitGroup
	for _, s := range streams {
		done.Go(s.end)
	}
	done.Wait()
}

// lost returns how many datagrams have not come back. Call it after end.
func (s *stream) lost() (lost, sent int) { return s.sent - len(s.back), s.sent }

// endWhole ends the stream, and fails the test if a datagram of it is lost without an explanation.
func (s *stream) endWhole(t *testing.T) {
	t.Helper()
	s.end()
	s.expectWhole(t)
}

// expectWhole fails the test if more datagrams of the stream, which has ended, are lost than the
// kernel had no room for: on a loaded machine that happens, and is no fault of weir's.
func (s *stream) expectWhole(t *testing.T) {
	t.Helper()
	lost, sent := s.lost()
	s.in.losses.judge(t, s.before, lost, fmt.Sprintf("%v: %d of %d datagrams", s.c.LocalAddr(), lost, sent))
}

// churn begins short UDP flows from an address, one after the other, until the test or stop ends
// it.
func churn(t *testing.T, n *namespace, from, remote netip.Addr, interval time.Duration) (stop func()) {
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		n.Do(func() error {
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for {
				select {
				case <-quit:
					return nil
				case <-tick.C:
				}
				c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(remote, echoPort)))
				if err != nil {
					continue
				}
				c.Write([]byte("short"))
				c.Close()
			}
		})
	})
	stop = sync.OnceFunc(func() {
		close(quit)
		done.Wait()
	})
	t.Cleanup(stop)
	return stop
}
