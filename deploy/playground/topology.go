// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"

	"weir/config"
	"weir/deploy/lab"
)

// topology is the playground's network, made from the configuration. Every box is a namespace,
// every line a veth pair:
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
	weir     *lab.Namespace
	internet *lab.Namespace
	guests   map[string]*guest // by VPC/instance
}

// guest is an instance as a machine.
type guest struct {
	*lab.Namespace
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

// build makes the namespaces and their wires. On an error what was made so far is there; remove
// removes it.
func build(prefix string, cfg *config.Config, destinations []netip.Addr) (*topology, error) {
	t := &topology{config: cfg, prefix: prefix, guests: map[string]*guest{}}
	var err error
	if t.weir, err = lab.NewNamed(prefix+"weir", true); err != nil {
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

// addInternet makes the outside: the port's next hops on one interface, and the destinations behind
// them.
func (t *topology) addInternet(port *config.Port, destinations []netip.Addr) error {
	if t.internet != nil {
		return fmt.Errorf("port %q: a second outside port; the playground has one Internet", port.Name)
	}
	iface, err := interfaceOf(port)
	if err != nil {
		return err
	}
	if t.internet, err = lab.NewNamed(t.prefix+"internet", false); err != nil {
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
		if err := t.internet.Address("eth0", netip.PrefixFrom(hop.Address, onLink.Bits())); err != nil {
			return err
		}
	}
	for _, a := range destinations {
		if err := t.internet.Address("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	for _, own := range port.Addresses { // whatever is not here is behind weir
		if err := t.internet.DefaultRoute("eth0", own.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// addVPC makes a VPC's switch, plugs its inside port into it, and adds a guest for each instance.
func (t *topology) addVPC(cfg *config.Config, vpc *config.VPC) error {
	swtch, err := lab.NewNamed(t.prefix+"switch-"+vpc.Name, true)
	if err != nil {
		return err
	}
	snooping := false // the guests' solicited-node groups are never announced to anybody
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge"}, MulticastSnooping: &snooping}
	if err := swtch.Add(bridge); err != nil {
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
		if err := swtch.Plug(plug, bridge.Name); err != nil {
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

func (t *topology) addGuest(vpc *config.VPC, instance *config.Instance, swtch *lab.Namespace, bridge *netlink.Bridge, plug string) error {
	name := vpc.Name + "/" + instance.Name
	n, err := lab.NewNamed(t.prefix+vpc.Name+"-"+instance.Name, false)
	if err != nil {
		return err
	}
	t.guests[name] = &guest{n, vpc, instance}
	if err := connect(swtch, plug, config.MAC{}, n, "eth0", instance.MAC); err != nil {
		return err
	}
	if err := swtch.Plug(plug, bridge.Name); err != nil {
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
		if err := n.Address("eth0", netip.PrefixFrom(own, firstHop.Bits())); err != nil {
			return err
		}
		if err := n.DefaultRoute("eth0", firstHop.Addr()); err != nil {
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

// connect makes a veth pair between two namespaces. A zero MAC leaves the choice to the kernel.
func connect(a *lab.Namespace, aName string, aMAC config.MAC, b *lab.Namespace, bName string, bMAC config.MAC) error {
	return lab.Connect(lab.End{Namespace: a, Link: aName, MAC: hardwareAddr(aMAC)}, lab.End{Namespace: b, Link: bName, MAC: hardwareAddr(bMAC)})
}

func hardwareAddr(mac config.MAC) net.HardwareAddr {
	if mac == (config.MAC{}) {
		return nil
	}
	return mac[:]
}
