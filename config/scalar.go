// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Each function here reads one kind of text. Its error continues a sentence that begins with the
// text: what is wrong, then what was expected.

// A choice is one of the words that a key takes.
type choice[T any] struct {
	word  string
	value T
}

// oneOf returns the parser of a key that takes the words of choices.
func oneOf[T any](choices ...choice[T]) func(string) (T, error) {
	return func(s string) (T, error) {
		var words []string
		for _, c := range choices {
			if c.word == s {
				return c.value, nil
			}
			words = append(words, c.word)
		}
		var none T
		return none, fmt.Errorf("is not accepted; expected %s", strings.Join(words, " or "))
	}
}

// words is oneOf for keys whose value is the word itself.
func words(list ...string) func(string) (string, error) {
	var choices []choice[string]
	for _, w := range list {
		choices = append(choices, choice[string]{w, w})
	}
	return oneOf(choices...)
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func parseName(s string) (string, error) {
	if !nameForm.MatchString(s) {
		return "", errors.New("is not a valid name; expected 1 to 63 letters, digits, dots, underscores and hyphens, a letter or digit first")
	}
	return s, nil
}

// parseGatewayName refuses names that a route's gateway would take for something else.
func parseGatewayName(s string) (string, error) {
	if s == unnamed {
		return "", errors.New("is reserved for the unnamed gateway; expected another name")
	}
	if _, err := parseID(s); err == nil {
		return "", errors.New("looks like an ID; expected a name")
	}
	return parseName(s)
}

var idForm = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)

func parseID(s string) (ID, error) {
	var id ID
	if !idForm.MatchString(s) {
		return id, errors.New("is not a UUID; expected one such as 00000000-0000-4000-8000-000000000001")
	}
	hex.Decode(id[:], []byte(strings.ReplaceAll(s, "-", ""))) // the form is checked
	if id == (ID{}) {
		return id, errors.New("is the nil UUID; expected another one")
	}
	return id, nil
}

// special lists ranges without unicast addresses (RFC 6890). They cannot be in a pool or subnet,
// nor belong to a host.
var special = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified addresses"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("::/128"), "the unspecified address"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped addresses"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// unicast refuses a range that overlaps a special one.
func unicast(r Range) error {
	for _, s := range special {
		if r.Contains(s.prefix.Addr()) || s.prefix.Contains(r.From) {
			return fmt.Errorf("overlaps %v (%s); expected unicast addresses", s.prefix, s.what)
		}
	}
	return nil
}

// parseAddress reads any unicast address.
func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, errors.New("is not an IP address; expected one such as 192.0.2.1 or 2001:db8::1")
	case a.Zone() != "":
		return a, fmt.Errorf("has a zone; expected %v", a.WithZone(""))
	case a.Is4In6():
		return a, fmt.Errorf("is an IPv4-mapped IPv6 address; expected %v", a.Unmap())
	}
	return a, unicast(Range{a, a})
}

// parsePrefix reads a canonical prefix of any addresses.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := parseLength(s)
	if err == nil && p != p.Masked() {
		err = fmt.Errorf("has bits set beyond its length; expected %v for the network or %v for the address",
			p.Masked(), netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
	}
	return p, err
}

// parseLength reads an address with a prefix length.
func parseLength(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := parseAddress(s); err == nil {
			return p, fmt.Errorf("has no length; expected %v or shorter", netip.PrefixFrom(a, a.BitLen()))
		}
		return p, errors.New("is not a prefix; expected one such as 192.0.2.0/24 or 2001:db8::/64, without a zone")
	}
	if p.Addr().Is4In6() {
		return p, errors.New("is IPv4-mapped; expected the IPv4 form")
	}
	return p, nil
}

// parseNetwork reads a canonical prefix of unicast addresses.
func parseNetwork(s string) (netip.Prefix, error) {
	p, err := parsePrefix(s)
	if err != nil {
		return p, err
	}
	if p.Bits() == 0 {
		return p, errors.New("covers every address; expected a network")
	}
	return p, unicast(rangeOf(p))
}

// parseInterface reads one of weir's addresses with the prefix of its network. All of a /31
// (RFC 3021) or /127 (RFC 6164) are hosts.
func parseInterface(s string) (netip.Prefix, error) {
	p, err := parseLength(s)
	if err != nil {
		return p, err
	}
	if p.Bits() == 0 {
		return p, errors.New("makes every address a neighbor; expected the prefix of the port's network")
	}
	if err := unicast(Range{p.Addr(), p.Addr()}); err != nil {
		return p, err
	}
	if p.Bits() < p.Addr().BitLen()-1 {
		network := rangeOf(p.Masked())
		if p.Addr() == network.From {
			return p, errors.New("is the network itself; expected the address of a host in it")
		}
		if p.Addr().Is4() && p.Addr() == network.To {
			return p, errors.New("is the network's broadcast address; expected the address of a host in it")
		}
	}
	return p, nil
}

// rangeOf returns the addresses of a canonical prefix.
func rangeOf(p netip.Prefix) Range {
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	to, _ := netip.AddrFromSlice(last)
	return Range{p.Addr(), to}
}

// parseRange reads a prefix, first-last, or one address.
func parseRange(s string) (Range, error) {
	if strings.Contains(s, "/") {
		p, err := parseNetwork(s)
		if err != nil {
			return Range{}, err
		}
		return rangeOf(p), nil
	}
	first, last, dash := strings.Cut(s, "-")
	if !dash {
		last = first
	}
	from, err := parseAddress(first)
	if err != nil {
		return Range{}, err
	}
	to, err := parseAddress(last)
	if err != nil {
		return Range{}, err
	}
	r := Range{from, to}
	switch {
	case from.BitLen() != to.BitLen():
		return r, errors.New("begins and ends in different families; expected first-last of one family")
	case to.Less(from):
		return r, fmt.Errorf("ends before it begins; expected %v-%v", to, from)
	}
	return r, unicast(r)
}

func parseMAC(s string) (MAC, error) {
	h, err := net.ParseMAC(s)
	if err != nil || len(h) != 6 {
		return MAC{}, errors.New("is not a MAC address; expected one such as 02:00:00:00:00:01")
	}
	m := MAC(h)
	if m == (MAC{}) || m[0]&1 != 0 {
		return MAC{}, errors.New("is multicast or zero; expected a unicast MAC address")
	}
	return m, nil
}

// ports is an inclusive range of transport ports or ICMP identifiers.
type ports struct{ first, last uint16 }

func parsePorts(s string) (ports, error) {
	expected := errors.New("is not a port range; expected first-last from 1 to 65535, such as 1024-17407")
	a, b, _ := strings.Cut(s, "-")
	first, err := strconv.ParseUint(a, 10, 16)
	if err != nil {
		return ports{}, expected
	}
	last, err := strconv.ParseUint(b, 10, 16)
	if err != nil {
		return ports{}, expected
	}
	switch {
	case first == 0:
		return ports{}, errors.New("includes port 0, which is reserved; expected first-last from 1 to 65535")
	case last < first:
		return ports{}, fmt.Errorf("ends before it begins; expected %d-%d", last, first)
	}
	return ports{uint16(first), uint16(last)}, nil
}

// maxTimeout is how far the data plane's 32-bit millisecond clock is let to look ahead.
const maxTimeout = 24 * time.Hour

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxTimeout || d%time.Millisecond != 0 {
		return 0, errors.New("is not a duration; expected one up to 24h in whole milliseconds, such as 90s, 5m or 2h4m")
	}
	return d, nil
}

var sizeForm = regexp.MustCompile(`^([0-9]{1,9})([KMGT])iB$`)

func parseSize(s string) (uint64, error) {
	m := sizeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, errors.New("is not a size; expected a whole number of KiB, MiB, GiB or TiB, such as 512MiB")
	}
	n, _ := strconv.ParseUint(m[1], 10, 64)
	n <<= 10 * (1 + strings.Index("KMGT", m[2]))
	if n < MinMemory || n > MaxMemory {
		return 0, fmt.Errorf("is out of bounds; expected %dMiB to %dTiB", MinMemory>>20, MaxMemory>>40)
	}
	return n, nil
}

var percentForm = regexp.MustCompile(`^([0-9]{1,3})%$`)

func parsePercent(s string) (int, error) {
	if m := percentForm.FindStringSubmatch(s); m != nil {
		if n, _ := strconv.Atoi(m[1]); n <= 100 {
			return n, nil
		}
	}
	return 0, errors.New("is not a percentage; expected 0% to 100%")
}

// parseListen reads the address of a TCP listener. Empty: none.
func parseListen(s string) (string, error) {
	if s == "" {
		return s, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err == nil && host != "" && host != "localhost" {
		_, err = netip.ParseAddr(host)
	}
	if err != nil {
		return s, errors.New(`is not a listen address; expected address:port, such as 127.0.0.1:9474 or [::1]:9474, or ""`)
	}
	return s, nil
}

// parseSocket reads the path of a Unix socket. Empty: none.
func parseSocket(s string) (string, error) {
	const longest = 107 // what the kernel's address has room for
	if s != "" && (!filepath.IsAbs(s) || filepath.Clean(s) != s || len(s) > longest || strings.ContainsFunc(s, func(c rune) bool { return !strconv.IsPrint(c) })) {
		return s, fmt.Errorf(`is not the path of a socket; expected an absolute path of at most %d bytes, such as /run/weir/api.sock, or ""`, longest)
	}
	return s, nil
}

var (
	pciForm  = regexp.MustCompile(`^([0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7](,[!-~]+)?$`)
	vdevForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.:-]*(,[!-~]+)?$`)
)

func parseDevice(s string) (string, error) {
	if !pciForm.MatchString(s) && !vdevForm.MatchString(s) {
		return s, errors.New("is not a device; expected a PCI address such as 0000:3b:00.1 or a vdev such as net_af_packet0,iface=eth1")
	}
	return s, nil
}

// DeviceName returns what two ports may not share: the device without its arguments.
func DeviceName(device string) string {
	name, _, _ := strings.Cut(device, ",")
	if pciForm.MatchString(name) {
		name = strings.ToLower(name)
		if len(name) == len("3b:00.1") {
			name = "0000:" + name
		}
	}
	return name
}

// interfaceOf returns the network interface of the host that a device makes or uses, which two
// devices may not share, or nothing.
func interfaceOf(device string) string {
	_, arguments, _ := strings.Cut(device, ",")
	for a := range strings.SplitSeq(arguments, ",") {
		if name, ok := strings.CutPrefix(a, "iface="); ok {
			return name
		}
	}
	return ""
}

// parseFolder reads the path of a folder, absolute or beside the file.
func parseFolder(s string) (string, error) {
	if s == "" || len(s) > 4095 || strings.ContainsFunc(s, func(c rune) bool { return !strconv.IsPrint(c) }) {
		return s, errors.New("is not the path of a folder; expected one such as tenants/")
	}
	return s, nil
}

// parseIgnored reads the name and the object of a warning.
func parseIgnored(s string) (string, error) {
	name, object, _ := strings.Cut(s, ":")
	if !slices.Contains(warningNames, name) || object == "" {
		return s, errors.New("is no warning; expected NAME:OBJECT as weir check prints it, such as no-address-for-route:blue/web-2, or no-address-for-route:* for all objects")
	}
	return s, nil
}
