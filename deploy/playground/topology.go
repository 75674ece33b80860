// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/config"
)

// topology is the playground's network, made from the configuration. Every box is a namespace, every line a veth pair:
//
//	[guest]  [guest]  [guest]      [guest]
//	     \      |      /              |
//	      [switch blue]        [switch green]     a bridge for each VPC
//	            |                     |
//	       ---------- [weir] -----------          the inside ports, one for each VPC
//	                     |                        the outside port
//	                 [internet]                   routers and destinations
//
// No interface here leads out of the machine.
type topology struct {
	config   *config.Config
	prefix   string // of the namespaces' names
	weir     *namespace
	internet *namespace
	guests   map[string]*guest // by VPC/instance
}

// guest is an instance as a machine.
type guest struct {
	*namespace
	vpc      *config.VPC
	instance *config.Instance
}

// address is the guest's own address of remote's family; invalid if it has none.
func (g *guest) address(remote netip.Addr) netip.Addr {
	if remote.Is4() {
		return g.instance.Address4
	}
	return g.instance.Address6
}

// build makes the namespaces and their wires. On an error what was made so far is there; remove removes it.
func build(prefix string, cfg *config.Config, destinations []netip.Addr) (*topology, error) {
	t := &topology{config: cfg, prefix: prefix, guests: map[string]*guest{}}
	var err error
	if t.weir, err = newNamespace(prefix+"weir", false); err != nil {
		return nil, err
	}
	for i := range cfg.Ports {
		if p := &cfg.Ports[i]; p.Side == config.Outside {
			if err := t.addInternet(p, destinations); err != nil {
				return nil, err
			}
		}
	}
	for i := range cfg.VPCs {
		if err := t.addVPC(cfg, &cfg.VPCs[i]); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *topology) remove() error { return removeNamespaces(t.prefix) }

// addInternet makes the outside: the port's next hops on one interface, and the destinations behind them.
func (t *topology) addInternet(port *config.Port, destinations []netip.Addr) error {
	if t.internet != nil {
		return fmt.Errorf("port %q: a second outside port; the playground has one Internet", port.Name)
	}
	iface, err := interfaceOf(port)
	if err != nil {
		return err
	}
	if t.internet, err = newNamespace(t.prefix+"internet", true); err != nil {
		return err
	}
	mac := config.MAC{}
	for _, hop := range port.NextHops {
		mac = hop.MAC
	}
	if err := connect(t.weir, iface, config.MAC{}, t.internet, "eth0", mac); err != nil {
		return err
	}
	for _, hop := range port.NextHops {
		onLink, ok := covering(port.Addresses, hop.Address)
		if !ok {
			return fmt.Errorf("port %q: next hop %s lies in none of the port's own prefixes", port.Name, hop.Address)
		}
		if err := t.internet.addAddress("eth0", netip.PrefixFrom(hop.Address, onLink.Bits())); err != nil {
			return err
		}
	}
	for _, a := range destinations {
		if err := t.internet.addAddress("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	for _, own := range port.Addresses { // whatever is not here is behind weir
		if err := t.internet.addDefaultRoute("eth0", own.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// addVPC makes a VPC's switch, plugs its inside port into it, and adds a guest for each instance.
func (t *topology) addVPC(cfg *config.Config, vpc *config.VPC) error {
	swtch, err := newNamespace(t.prefix+"switch-"+vpc.Name, false)
	if err != nil {
		return err
	}
	snooping := false // the guests' solicited-node groups are never announced to anybody
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge"}, MulticastSnooping: &snooping}
	if err := swtch.links.LinkAdd(bridge); err != nil {
		return fmt.Errorf("namespace %s: add bridge: %w", swtch.name, err)
	}
	if err := swtch.up("bridge"); err != nil {
		return err
	}
	for i, attachment := range vpc.Attach {
		iface, err := interfaceOf(&cfg.Ports[attachment.Port])
		if err != nil {
			return err
		}
		plug := fmt.Sprintf("weir%d", i)
		if err := connect(t.weir, iface, config.MAC{}, swtch, plug, config.MAC{}); err != nil {
			return err
		}
		if err := swtch.enslave(plug, bridge); err != nil {
			return err
		}
	}
	for i := range vpc.Instances {
		if err := t.addGuest(vpc, &vpc.Instances[i], swtch, bridge, fmt.Sprintf("guest%d", i)); err != nil {
			return err
		}
	}
	return nil
}

func (t *topology) addGuest(vpc *config.VPC, instance *config.Instance, swtch *namespace, bridge netlink.Link, plug string) error {
	name := vpc.Name + "/" + instance.Name
	n, err := newNamespace(t.prefix+vpc.Name+"-"+instance.Name, true)
	if err != nil {
		return err
	}
	t.guests[name] = &guest{n, vpc, instance}
	if err := connect(swtch, plug, config.MAC{}, n, "eth0", instance.MAC); err != nil {
		return err
	}
	if err := swtch.enslave(plug, bridge); err != nil {
		return err
	}
	var firstHops []netip.Prefix
	for _, a := range vpc.Attach {
		firstHops = append(firstHops, a.Addresses...)
	}
	for _, own := range []netip.Addr{instance.Address4, instance.Address6} {
		if !own.IsValid() {
			continue
		}
		firstHop, ok := covering(firstHops, own)
		if !ok {
			return fmt.Errorf("instance %s: no attach address shares a prefix with its address %s; it has no first hop", name, own)
		}
		if err := n.addAddress("eth0", netip.PrefixFrom(own, firstHop.Bits())); err != nil {
			return err
		}
		if err := n.addDefaultRoute("eth0", firstHop.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// interfaceOf is the network interface that a port's device names.
func interfaceOf(port *config.Port) (string, error) {
	for arg := range strings.SplitSeq(port.Device, ",") {
		if name, ok := strings.CutPrefix(arg, "iface="); ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("port %q: device %q: the playground needs net_af_packetN,iface=NAME", port.Name, port.Device)
}

// covering finds the prefix, given with its host address, that a lies in.
func covering(prefixes []netip.Prefix, a netip.Addr) (netip.Prefix, bool) {
	for _, p := range prefixes {
		if p.Contains(a) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// connect makes a veth pair between two namespaces and sets both ends up. Neither end leaves checksums to hardware
// that is not there: the other side reads raw frames and would take them for broken.
func connect(a *namespace, aName string, aMAC config.MAC, b *namespace, bName string, bMAC config.MAC) error {
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: aName, HardwareAddr: hardwareAddr(aMAC)},
		PeerName:         bName,
		PeerHardwareAddr: hardwareAddr(bMAC),
		PeerNamespace:    netlink.NsFd(b.ns),
	}
	if err := a.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth pair %s in %s, %s in %s: %w", aName, a.name, bName, b.name, err)
	}
	for _, end := range []struct {
		*namespace
		link string
	}{{a, aName}, {b, bName}} {
		if err := end.do(func() error { return checksumInSoftware(end.link) }); err != nil {
			return err
		}
		if err := end.up(end.link); err != nil {
			return err
		}
	}
	return nil
}

func hardwareAddr(mac config.MAC) net.HardwareAddr {
	if mac == (config.MAC{}) {
		return nil // the kernel chooses
	}
	return mac[:]
}

// checksumInSoftware is `ethtool -K link tx off`, for the interface of the calling thread's namespace.
func checksumInSoftware(link string) error {
	const ethtoolSetTxChecksum = 0x17 // ETHTOOL_STXCSUM
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("turn %s's checksum offload off: socket: %w", link, err)
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{ethtoolSetTxChecksum, 0}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of ifreq's union
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], link)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("turn %s's checksum offload off: ETHTOOL_STXCSUM: %w", link, errno)
	}
	return nil
}

func (n *namespace) enslave(link string, bridge netlink.Link) error {
	l, err := n.links.LinkByName(link)
	if err == nil {
		err = n.links.LinkSetMaster(l, bridge)
	}
	if err != nil {
		return fmt.Errorf("namespace %s: plug %s into the bridge: %w", n.name, link, err)
	}
	return nil
}

func (n *namespace) addAddress(link string, address netip.Prefix) error {
	l, err := n.links.LinkByName(link)
	if err == nil {
		err = n.links.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{
			IP:   address.Addr().AsSlice(),
			Mask: net.CIDRMask(address.Bits(), address.Addr().BitLen()),
		}})
	}
	if err != nil {
		return fmt.Errorf("namespace %s: give %s the address %s: %w", n.name, link, address, err)
	}
	return nil
}

func (n *namespace) addDefaultRoute(link string, by netip.Addr) error {
	l, err := n.links.LinkByName(link)
	if err == nil {
		err = n.links.RouteAdd(&netlink.Route{
			LinkIndex: l.Attrs().Index,
			Dst:       &net.IPNet{IP: make(net.IP, by.BitLen()/8), Mask: net.CIDRMask(0, by.BitLen())},
			Gw:        by.AsSlice(),
		})
	}
	if err != nil {
		return fmt.Errorf("namespace %s: add the default route by %s: %w", n.name, by, err)
	}
	return nil
}
