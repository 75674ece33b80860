// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"cmp"
	"fmt"
	"reflect"
	"slices"
)

// Equal reports whether a and b mean the same, so that going from one to the other changes nothing.
func Equal(a, b *Config) bool { return len(Changes(a, b)) == 0 }

// Diff says in words what differs: the text of each of Changes.
func Diff(old, new *Config) []string {
	var lines []string
	for _, c := range Changes(old, new) {
		lines = append(lines, c.Text)
	}
	return lines
}

// Kind is the kind of object that a Change is about.
type Kind uint8

const (
	KindSection Kind = iota // api, log, dataplane, reload: nothing that a session feels
	KindSessions
	KindPort
	KindPool
	KindGateway
	KindVPC
	KindRoute
	KindInstance
)

// Change is one difference between two Configs: an object added, removed or changed.
type Change struct {
	Text     string // such as: instance "web-1" of vpc "blue" changed
	Kind     Kind
	Old, New Place // where the object is; None where it is not
}

// Place is where an object is in a Config: Index in the list of its kind, for routes and instances
// in that of the VPC.
type Place struct{ VPC, Index int }

// None is the Place of an object that a Config does not have.
var None = Place{-1, -1}

// Changes returns what differs, in the order of the file's keys. Empty exactly when Equal. It takes
// time only for VPCs whose lists the two Configs do not share.
func Changes(old, new *Config) []Change {
	d := diff{old: old, new: new}
	d.section("api", KindSection, old.API, new.API)
	d.section("log", KindSection, old.Log, new.Log)
	d.section("dataplane", KindSection, old.Dataplane, new.Dataplane)
	d.section("sessions", KindSessions, old.Sessions, new.Sessions)
	d.section("metrics", KindSection, old.Metrics, new.Metrics)
	d.section("reload", KindSection, old.Reload, new.Reload)
	d.section("warnings", KindSection, old.Warnings, new.Warnings)
	compare(&d, comparison[Port]{KindPort, old.Ports, new.Ports, 0, 0, namePort, same[Port]}, comparePorts)
	compare(&d, comparison[Pool]{KindPool, old.Pools, new.Pools, 0, 0, func(p *Pool) string { return fmt.Sprintf("pool %q", p.Name) }, d.samePool},
		func(a, b *Pool) int { return cmp.Compare(a.Name, b.Name) })
	compare(&d, comparison[Gateway]{KindGateway, old.Gateways, new.Gateways, 0, 0, func(g *Gateway) string { return fmt.Sprintf("gateway %v", g.ID) }, d.sameGateway},
		func(a, b *Gateway) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	d.stablePorts = slices.EqualFunc(old.Ports, new.Ports, func(a, b Port) bool { return a.Name == b.Name })
	d.stableGateways = slices.EqualFunc(old.Gateways, new.Gateways, func(a, b Gateway) bool { return a.ID == b.ID })
	vpcs := pairs(old.VPCs, new.VPCs, func(a, b *VPC) int { return cmp.Compare(a.Name, b.Name) }, d.places)
	report(&d, comparison[VPC]{KindVPC, old.VPCs, new.VPCs, 0, 0,
		func(v *VPC) string { return fmt.Sprintf("vpc %q", v.Name) }, d.sameNetwork}, vpcs, func(v *VPC) *string { return &v.Name })
	// The routes and instances of a VPC that came or went did so with it.
	for _, p := range vpcs {
		i, j := p.old, p.new
		if i < 0 || j < 0 {
			continue
		}
		a, b := &old.VPCs[i], &new.VPCs[j]
		if !d.stableGateways || !shared(a.Routes, b.Routes) {
			compare(&d, comparison[Route]{KindRoute, a.Routes, b.Routes, i, j,
				func(r *Route) string { return fmt.Sprintf("%s of vpc %q", r.name(), a.Name) }, d.sameTarget}, compareRoutes)
		}
		if !shared(a.Instances, b.Instances) {
			list := pairs(a.Instances, b.Instances, func(a, b *Instance) int { return cmp.Compare(a.Name, b.Name) },
				func(i *Instance) string { return i.Identity().String() })
			report(&d, comparison[Instance]{KindInstance, a.Instances, b.Instances, i, j,
				func(i *Instance) string { return fmt.Sprintf("instance %q of vpc %q", i.Name, a.Name) }, same[Instance]},
				list, func(i *Instance) *string { return &i.Name })
		}
	}
	return d.changes
}

// RestartOnly names the keys that differ and that are read at start only: the API's, the log's and
// the data plane's, the set of ports and each port's device, side, VLAN, MTU and MAC. A reload
// leaves them as they are.
func RestartOnly(old, new *Config) []string {
	var keys []string
	only := func(key string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			keys = append(keys, key)
		}
	}
	only("api", old.API, new.API)
	only("log", old.Log, new.Log)
	only("dataplane.workers", old.Dataplane.Workers, new.Dataplane.Workers)
	only("dataplane.memory", old.Dataplane.Memory, new.Dataplane.Memory)
	only("dataplane.idle", old.Dataplane.Idle, new.Dataplane.Idle)
	only("dataplane.sessions", old.Dataplane.Sessions, new.Dataplane.Sessions)
	only("dataplane.vfio_intr", old.Dataplane.VFIOIntr, new.Dataplane.VFIOIntr)
	only("dataplane.iova", old.Dataplane.IOVA, new.Dataplane.IOVA)
	var d diff
	compare(&d, comparison[Port]{KindPort, old.Ports, new.Ports, 0, 0, namePort, func(a, b *Port) bool { return true }}, comparePorts)
	for _, c := range d.changes {
		keys = append(keys, c.Text)
	}
	merge(old.Ports, new.Ports, comparePorts, func(i, j int) {
		if i < 0 || j < 0 {
			return
		}
		a, b := &old.Ports[i], &new.Ports[j]
		only(namePort(a)+" device", a.Device, b.Device)
		only(namePort(a)+" side", a.Side, b.Side)
		only(namePort(a)+" mtu", a.MTU, b.MTU)
		only(namePort(a)+" mac", a.MAC, b.MAC)
		only(namePort(a)+" vlan", a.VLAN, b.VLAN)
	})
	return keys
}

func comparePorts(a, b *Port) int { return cmp.Compare(a.Name, b.Name) }
func namePort(p *Port) string     { return fmt.Sprintf("port %q", p.Name) }

// compareRoutes orders what identifies a route within its VPC as the lists are sorted.
func compareRoutes(a, b *Route) int {
	return cmp.Or(comparePrefix(a.To, b.To), comparePrefix(a.From, b.From), cmp.Compare(a.Class, b.Class))
}

// diff collects changes.
type diff struct {
	old, new                    *Config
	stablePorts, stableGateways bool // an index means the same in both
	changes                     []Change
}

// section compares what a Config has once.
func (d *diff) section(key string, kind Kind, a, b any) {
	if !reflect.DeepEqual(a, b) {
		d.changes = append(d.changes, Change{key + " changed", kind, None, None})
	}
}

// merge calls f for each element of two sorted lists: with its index in both, -1 where it is in one
// only.
func merge[T any](old, new []T, order func(a, b *T) int, f func(i, j int)) {
	i, j := 0, 0
	for i < len(old) && j < len(new) {
		switch c := order(&old[i], &new[j]); {
		case c < 0:
			f(i, -1)
			i++
		case c > 0:
			f(-1, j)
			j++
		default:
			f(i, j)
			i++
			j++
		}
	}
	for ; i < len(old); i++ {
		f(i, -1)
	}
	for ; j < len(new); j++ {
		f(-1, j)
	}
}

// comparison is two sorted lists of one kind: name says in words which element it is.
type comparison[T any] struct {
	kind           Kind
	old, new       []T
	oldVPC, newVPC int
	name           func(*T) string
	same           func(a, b *T) bool
}

// pair is one object in both lists: its indexes, -1 where it is in one only.
type pair struct{ old, new int }

// compare adds a change for each object that is in one list only or differs: those removed or
// changed first. order goes by what identifies an object.
func compare[T any](d *diff, c comparison[T], order func(a, b *T) int) {
	report(d, c, pairs(c.old, c.new, order, nil), nil)
}

// pairs finds the same objects in both lists. Of those whose name is in one list only, two with the
// same identity, if that is asked for and not empty, are one that was renamed.
func pairs[T any](old, new []T, order func(a, b *T) int, identity func(*T) string) (list []pair) {
	var removed, added []int // places in list
	merge(old, new, order, func(i, j int) {
		switch {
		case j < 0:
			removed = append(removed, len(list))
		case i < 0:
			added = append(added, len(list))
		}
		list = append(list, pair{i, j})
	})
	if identity == nil || len(removed) == 0 || len(added) == 0 {
		return list
	}
	gone := make(map[string]int, len(removed))
	for _, at := range removed {
		if id := identity(&old[list[at].old]); id != "" {
			gone[id] = at
		}
	}
	twice := map[int]bool{}
	for _, at := range added {
		if was, ok := gone[identity(&new[list[at].new])]; ok {
			list[was].new, twice[at] = list[at].new, true
		}
	}
	kept := list[:0]
	for at, p := range list {
		if !twice[at] {
			kept = append(kept, p)
		}
	}
	return kept
}

// report adds the changes of pairs. label is the name of an object that may be renamed, for all
// that is compared except the name.
func report[T any](d *diff, c comparison[T], list []pair, label func(*T) *string) {
	var added []Change
	for _, p := range list {
		i, j := p.old, p.new
		switch {
		case j < 0:
			d.changes = append(d.changes, Change{c.name(&c.old[i]) + " removed", c.kind, Place{c.oldVPC, i}, None})
			continue
		case i < 0:
			added = append(added, Change{c.name(&c.new[j]) + " added", c.kind, None, Place{c.newVPC, j}})
			continue
		}
		a, b, verb := &c.old[i], &c.new[j], " changed"
		if label != nil && *label(a) != *label(b) {
			verb = fmt.Sprintf(" renamed %q", *label(b))
			renamed := *b
			*label(&renamed) = *label(a)
			if b = &renamed; !c.same(a, b) {
				verb += " and changed"
			}
		} else if c.same(a, b) {
			continue
		}
		d.changes = append(d.changes, Change{c.name(a) + verb, c.kind, Place{c.oldVPC, i}, Place{c.newVPC, j}})
	}
	d.changes = append(d.changes, added...)
}

func same[T any](a, b *T) bool { return reflect.DeepEqual(a, b) }

// shared reports whether two lists share their memory. Lists of a Config are read-only, so they are
// then equal.
func shared[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// places is the identity of a VPC whose name is new: the set of its attachments.
func (d *diff) places(v *VPC) string {
	if !d.stablePorts { // which takes a restart
		return ""
	}
	return v.AttachmentSet()
}

// The methods below compare objects with names in place of indexes, which shift when a neighbor
// comes or goes.

func (d *diff) samePool(a, b *Pool) bool {
	x, y := *a, *b
	x.Ports, y.Ports = nil, nil
	name := func(p *Port) string { return p.Name }
	return same(&x, &y) && slices.Equal(namesOf(a.Ports, d.old.Ports, name), namesOf(b.Ports, d.new.Ports, name))
}

func (d *diff) sameGateway(a, b *Gateway) bool {
	x, y := *a, *b
	x.Pools, x.VPC, y.Pools, y.VPC = nil, 0, nil, 0
	owner := func(c *Config, g *Gateway) string {
		if g.VPC < 0 {
			return ""
		}
		return c.VPCs[g.VPC].Name
	}
	name := func(p *Pool) string { return p.Name }
	return same(&x, &y) && owner(d.old, a) == owner(d.new, b) &&
		slices.Equal(namesOf(a.Pools, d.old.Pools, name), namesOf(b.Pools, d.new.Pools, name))
}

// sameNetwork compares VPCs without their routes and instances.
func (d *diff) sameNetwork(a, b *VPC) bool {
	if d.stablePorts && shared(a.Attach, b.Attach) && shared(a.Subnets, b.Subnets) && a.PerVPC == b.PerVPC && a.Weight == b.Weight {
		return true
	}
	x, y := *a, *b
	x.Attach, x.Routes, x.Instances, y.Attach, y.Routes, y.Instances = nil, nil, nil, nil, nil, nil
	return same(&x, &y) && slices.EqualFunc(a.Attach, b.Attach, func(a, b Attachment) bool {
		same := d.old.Ports[a.Port].Name == d.new.Ports[b.Port].Name
		a.Port, b.Port = 0, 0
		return same && reflect.DeepEqual(a, b)
	})
}

func (d *diff) sameTarget(a, b *Route) bool {
	x, y := *a, *b
	if x.Target != TargetGateway || y.Target != TargetGateway {
		return x == y
	}
	id := func(c *Config, r *Route) ID {
		if r.Gateway == UnnamedGateway {
			return ID{}
		}
		return c.Gateways[r.Gateway].ID
	}
	x.Gateway, y.Gateway = 0, 0
	return x == y && id(d.old, a) == id(d.new, b)
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
