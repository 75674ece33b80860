// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"reflect"
	"slices"
)

// Equal reports whether a and b mean the same, so that going from one to the other changes nothing.
func Equal(a, b *Config) bool {
	return reflect.DeepEqual(a, b) // Load makes texts of one meaning deeply equal
}

// Diff says in words what differs: a line for each object added, removed or changed, in the order of the file's
// keys. Empty exactly when Equal.
func Diff(old, new *Config) []string {
	var d diff
	d.section("api", old.API, new.API)
	d.section("log", old.Log, new.Log)
	d.section("dataplane", old.Dataplane, new.Dataplane)
	d.section("sessions", old.Sessions, new.Sessions)
	d.section("reload", old.Reload, new.Reload)
	compare(&d, old.Ports, new.Ports,
		func(p *Port) string { return fmt.Sprintf("port %q", p.Name) }, same[Port])
	compare(&d, old.Pools, new.Pools,
		func(p *Pool) string { return fmt.Sprintf("pool %q", p.Name) },
		func(a, b *Pool) bool { return old.pool(a) == new.pool(b) })
	compare(&d, old.Gateways, new.Gateways,
		func(g *Gateway) string { return fmt.Sprintf("gateway %v", g.ID) },
		func(a, b *Gateway) bool { return old.gateway(a) == new.gateway(b) })
	newVPCs := byKey(new.VPCs, func(v *VPC) string { return v.Name })
	compare(&d, old.VPCs, new.VPCs,
		func(v *VPC) string { return fmt.Sprintf("vpc %q", v.Name) },
		func(a, b *VPC) bool { return old.network(a) == new.network(b) })
	for i := range old.VPCs {
		a := &old.VPCs[i]
		b := newVPCs[a.Name]
		if b == nil {
			continue // its routes and instances went with it
		}
		of := fmt.Sprintf(" of vpc %q", a.Name)
		compare(&d, a.Routes, b.Routes,
			func(r *Route) string { return r.name() + of },
			func(a, b *Route) bool { return old.target(a) == new.target(b) })
		compare(&d, a.Instances, b.Instances,
			func(i *Instance) string { return fmt.Sprintf("instance %q", i.Name) + of }, same[Instance])
	}
	return d.lines
}

// RestartOnly names the keys that differ and that are read at start only: the API's, the log's and the data plane's, the set of
// ports and each port's device, side, MTU and MAC. A reload leaves them as they are.
func RestartOnly(old, new *Config) []string {
	var d diff
	d.only("api", old.API, new.API)
	d.only("log", old.Log, new.Log)
	d.only("dataplane.workers", old.Dataplane.Workers, new.Dataplane.Workers)
	d.only("dataplane.memory", old.Dataplane.Memory, new.Dataplane.Memory)
	d.only("dataplane.idle", old.Dataplane.Idle, new.Dataplane.Idle)
	d.only("dataplane.sessions", old.Dataplane.Sessions, new.Dataplane.Sessions)
	d.only("dataplane.eal_args", old.Dataplane.EALArgs, new.Dataplane.EALArgs)
	name := func(p *Port) string { return fmt.Sprintf("port %q", p.Name) }
	compare(&d, old.Ports, new.Ports, name, func(a, b *Port) bool { return true })
	kept := byKey(new.Ports, name)
	for i := range old.Ports {
		a := &old.Ports[i]
		if b := kept[name(a)]; b != nil {
			d.only(name(a)+" device", a.Device, b.Device)
			d.only(name(a)+" side", a.Side, b.Side)
			d.only(name(a)+" mtu", a.MTU, b.MTU)
			d.only(name(a)+" mac", a.MAC, b.MAC)
		}
	}
	return d.lines
}

// diff collects lines.
type diff struct{ lines []string }

func (d *diff) add(format string, args ...any) {
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

// section compares what stands once in a Config.
func (d *diff) section(key string, a, b any) { d.only(key+" changed", a, b) }

// only adds line if a and b differ.
func (d *diff) only(line string, a, b any) {
	if !reflect.DeepEqual(a, b) {
		d.lines = append(d.lines, line)
	}
}

// compare adds a line for each object that is in one list only or differs; key identifies an object in a line's words.
func compare[T any](d *diff, old, new []T, key func(*T) string, same func(a, b *T) bool) {
	before, after := byKey(old, key), byKey(new, key)
	for i := range old {
		k := key(&old[i])
		if b := after[k]; b == nil {
			d.add("%s removed", k)
		} else if !same(&old[i], b) {
			d.add("%s changed", k)
		}
	}
	for i := range new {
		if k := key(&new[i]); before[k] == nil {
			d.add("%s added", k)
		}
	}
}

func byKey[T any](list []T, key func(*T) string) map[string]*T {
	m := make(map[string]*T, len(list))
	for i := range list {
		m[key(&list[i])] = &list[i]
	}
	return m
}

func same[T any](a, b *T) bool { return reflect.DeepEqual(a, b) }

// The methods below write an object with names in place of indexes, which shift when a neighbor comes or goes.

func (c *Config) pool(p *Pool) string {
	return fmt.Sprintf("%v %q %v", p.Ranges, namesOf(p.Ports, c.Ports, func(p *Port) string { return p.Name }), p.Sessions)
}

func (c *Config) gateway(g *Gateway) string {
	owner := ""
	if g.VPC >= 0 {
		owner = c.VPCs[g.VPC].Name
	}
	return fmt.Sprintf("%q %q %q %v", g.Name, owner, namesOf(g.Pools, c.Pools, func(p *Pool) string { return p.Name }), g.Addresses)
}

// network writes a VPC without its routes and instances.
func (c *Config) network(v *VPC) string {
	s := fmt.Sprintf("%v %d", v.Subnets, v.PerVPC)
	for _, a := range v.Attach {
		s += fmt.Sprintf(" %q %v %v", c.Ports[a.Port].Name, a.Addresses, a.NextHops)
	}
	return s
}

func (c *Config) target(r *Route) string {
	gateway := unnamed
	if r.Target == TargetGateway && r.Gateway != UnnamedGateway {
		gateway = c.Gateways[r.Gateway].ID.String()
	}
	return fmt.Sprintf("%d %s %v %v", r.Target, gateway, r.Address, r.Subnet)
}

// name identifies a route within its VPC.
func (r *Route) name() string {
	s := fmt.Sprintf("route to %v", r.To)
	if r.From.IsValid() {
		s += fmt.Sprintf(" from %v", r.From)
	}
	if r.Class == System {
		s = "system " + s
	}
	return s
}

// namesOf returns the sorted names of what indexes refer to.
func namesOf[T any](indexes []int, list []T, name func(*T) string) []string {
	var names []string
	for _, i := range indexes {
		names = append(names, name(&list[i]))
	}
	slices.Sort(names)
	return names
}
