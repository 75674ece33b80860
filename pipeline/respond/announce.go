// SPDX-License-Identifier: Apache-2.0

package respond

import (
	"net/netip"
	"slices"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/generation"
	"weir/pipeline/header"
)

// Addresses that come to weir are told to the links that they are answered on: by a gratuitous ARP
// request (RFC 5227 §3) or an unsolicited neighbor advertisement (RFC 4861 §7.2.6). Without that an
// address is dark until its neighbors' entries, of who had it before, end.

// announcement is an address to announce on an attachment or outside port.
type announcement struct {
	at     attach.Word
	addr   netip.Addr
	router bool // weir's own
}

// announced is how many are said in a scan, ten of which make a second.
const announced = 10

// AnnounceAll announces all addresses that weir answers for, its own first: when a data plane
// begins, other hosts may have had them.
func (r *Responder) AnnounceAll() {
	r.announce = r.announce[:0]
	r.announceOwn(nil, r.cfg)
	r.announceExternal(nil, r.cfg)
}

// AnnounceNew announces the addresses that weir answers for now and did not under the configuration
// before.
func (r *Responder) AnnounceNew(before *config.Config) {
	r.announceOwn(before, r.cfg)
	r.announceExternal(before, r.cfg)
}

// announceOwn queues weir's own addresses that were not there before.
func (r *Responder) announceOwn(before, now *config.Config) {
	var was map[announcement]bool
	if before != nil {
		was = map[announcement]bool{}
		for a := range own(before) {
			was[a] = true
		}
	}
	for a := range own(now) {
		if !was[a] {
			r.announce = append(r.announce, a)
		}
	}
}

// own yields weir's own addresses where they are answered by ARP or ND.
func own(cfg *config.Config) func(func(announcement) bool) {
	return func(yield func(announcement) bool) {
		for i := range cfg.Ports {
			p := &cfg.Ports[i]
			for _, a := range p.Addresses {
				if !yield(announcement{generation.PortWord(i, p), a.Addr(), true}) {
					return
				}
			}
		}
		for i := range cfg.VPCs {
			for j := range cfg.VPCs[i].Attach {
				t := &cfg.VPCs[i].Attach[j]
				for _, a := range t.Addresses {
					if at := generation.WordOf(t); !at.Tunnel() && !yield(announcement{at, a.Addr(), true}) {
						return
					}
				}
			}
		}
	}
}

// announceExternal queues external addresses that are answered on outside ports and were nobody's
// before. VPCs whose instances are the same ones cost nothing.
func (r *Responder) announceExternal(before, now *config.Config) {
	var ports []int
	for i := range now.Ports {
		if p := &now.Ports[i]; p.Side == config.Outside && p.Answer != config.AnswerNone {
			ports = append(ports, i)
		}
	}
	if len(ports) == 0 {
		return
	}
	old := map[string]*config.VPC{}
	if before != nil {
		for i := range before.VPCs {
			old[before.VPCs[i].Name] = &before.VPCs[i]
		}
	}
	seen := map[netip.Addr]bool{} // of VPCs that differ
	var fresh []netip.Addr
	for i := range now.VPCs {
		v := &now.VPCs[i]
		if o := old[v.Name]; o != nil {
			if len(o.Instances) == len(v.Instances) && (len(v.Instances) == 0 || &o.Instances[0] == &v.Instances[0]) {
				continue
			}
			for j := range o.Instances {
				externals(&o.Instances[j], func(a netip.Addr) { seen[a] = true })
			}
		}
		for j := range v.Instances {
			externals(&v.Instances[j], func(a netip.Addr) { fresh = append(fresh, a) })
		}
	}
	for _, a := range fresh {
		if seen[a] {
			continue
		}
		seen[a] = true // an SNAT address may be several instances'
		for _, i := range ports {
			p := &now.Ports[i]
			if p.Answer == config.AnswerAll || slices.ContainsFunc(p.Addresses, func(n netip.Prefix) bool { return n.Masked().Contains(a) }) {
				r.announce = append(r.announce, announcement{generation.PortWord(i, p), a, false})
			}
		}
	}
}

// externals calls f for the external addresses of an instance.
func externals(in *config.Instance, f func(netip.Addr)) {
	for _, a := range in.Floating {
		f(a)
	}
	for _, a := range in.Ephemeral {
		f(a)
	}
	for _, s := range in.SNAT {
		f(s.Address)
	}
}

// announceSome says the next ones.
func (r *Responder) announceSome() {
	for range min(announced, len(r.announce)) {
		a := r.announce[0]
		r.announce = r.announce[1:]
		mac := r.mac(a.at)
		if a.addr.Is4() {
			r.send(a.at, header.AppendARPRequest(r.frame(header.Broadcast, a.at, header.EtherTypeARP), mac, a.addr, a.addr))
			continue
		}
		flags := uint8(header.NDPOverride)
		if a.router {
			flags |= header.NDPRouter
		}
		all := netip.IPv6LinkLocalAllNodes()
		r.send(a.at, header.AppendNeighborAdvertisement(r.frame(header.MulticastMAC(all), a.at, header.EtherTypeIPv6), mac, flags, a.addr, all, a.addr))
	}
}
