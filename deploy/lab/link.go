// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is an end of a veth pair.
type End struct {
	*Namespace
	Link string
	MAC  net.HardwareAddr // nil: the kernel chooses
}

// Connect makes a veth pair between two namespaces and sets both ends up, with checksums in
// software.
func Connect(a, b End) error {
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: a.Link, HardwareAddr: a.MAC},
		PeerName:         b.Link,
		PeerHardwareAddr: b.MAC,
		PeerNamespace:    netlink.NsFd(b.NS),
	}
	if err := a.Links.LinkAdd(veth); err != nil {
		return a.fault(fmt.Sprintf("veth pair %s and %s", a.Link, b.Link), err)
	}
	for _, end := range []End{a, b} {
		if err := end.checksumInSoftware(end.Link); err != nil {
			return err
		}
		if err := end.Up(end.Link); err != nil {
			return err
		}
	}
	return nil
}

// Add adds a device (a bridge, a VXLAN device, a tap for a virtual machine) and sets it up.
func (n *Namespace) Add(device netlink.Link) error {
	name := device.Attrs().Name
	// The kernel makes a tap where the thread is, whatever the handle says.
	if err := n.Do(func() error { return n.Links.LinkAdd(device) }); err != nil {
		return n.fault(fmt.Sprintf("add the %s %s", device.Type(), name), err)
	}
	return n.Up(name)
}

// Up sets an interface up.
func (n *Namespace) Up(link string) error {
	l, err := n.Links.LinkByName(link)
	if err == nil {
		err = n.Links.LinkSetUp(l)
	}
	if err != nil {
		return n.fault("set "+link+" up", err)
	}
	return nil
}

// Plug makes an interface a port of a bridge.
func (n *Namespace) Plug(link, bridge string) error {
	l, err := n.Links.LinkByName(link)
	if err == nil {
		var b netlink.Link
		if b, err = n.Links.LinkByName(bridge); err == nil {
			err = n.Links.LinkSetMaster(l, b)
		}
	}
	if err != nil {
		return n.fault("plug "+link+" into "+bridge, err)
	}
	return nil
}

// Address gives an interface an address, with the length of its network.
func (n *Namespace) Address(link string, address netip.Prefix) error {
	l, err := n.Links.LinkByName(link)
	if err == nil {
		err = n.Links.AddrAdd(l, &netlink.Addr{
			IPNet: ipNet(address),
			Flags: unix.IFA_F_NODAD, // else an IPv6 address works only some time later, even on lo
		})
	}
	if err != nil {
		return n.fault(fmt.Sprintf("give %s the address %s", link, address), err)
	}
	return nil
}

// Route sends what goes to a prefix to a router.
func (n *Namespace) Route(to netip.Prefix, router netip.Addr) error {
	if err := n.Links.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: router.AsSlice()}); err != nil {
		return n.fault(fmt.Sprintf("route %s to %s", to, router), err)
	}
	return nil
}

// DefaultRoute makes a router the default one of its family.
func (n *Namespace) DefaultRoute(link string, router netip.Addr) error {
	l, err := n.Links.LinkByName(link)
	if err == nil {
		none := netip.PrefixFrom(router, 0).Masked()
		err = n.Links.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(none), Gw: router.AsSlice()})
	}
	if err != nil {
		return n.fault(fmt.Sprintf("add the default route to %s", router), err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// checksumInSoftware is `ethtool -K link tx off`: to a reader of raw frames at the other end of a
// veth pair, frames whose checksum is left to hardware look broken.
func (n *Namespace) checksumInSoftware(link string) error {
	const setTxChecksum = 0x17 // ETHTOOL_STXCSUM
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		defer unix.Close(fd)
		value := struct{ command, data uint32 }{setTxChecksum, 0}
		request := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte // the rest of ifreq's union
		}{data: unsafe.Pointer(&value)}
		copy(request.name[:unix.IFNAMSIZ-1], link)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return fmt.Errorf("ETHTOOL_STXCSUM: %w", errno)
		}
		return nil
	})
	if err != nil {
		return n.fault("turn "+link+"'s checksum offload off", err)
	}
	return nil
}
