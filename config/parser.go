// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"context"
	"crypto/sha256"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Parser checks successive configurations and repeats only the work for what changed: it reads
// files with new content, several at a time, and checks the VPCs in them. Its result equals that of
// Parse for the same files, except that Configs share the lists of unchanged VPCs. It is not safe
// for use by several goroutines.
type Parser struct {
	Read, Check time.Duration // what the last call took for the files, and for what they say together

	last    []*fragment // of the last call
	good    []*fragment // of the last without faults
	checked *checker    // what that came to
}

// fragment is the content of one file.
type fragment struct {
	name   string
	sum    Sum
	doc    *document
	faults findings
	whole  bool   // false: none of it could be read
	head   []byte // the text of a file that includes folders
}

// Parse checks files as one configuration. It keeps none of their bytes. The error is a Faults;
// warnings come only with a Config.
func (p *Parser) Parse(files []File) (*Config, []Warning, error) {
	return p.ParseContext(context.Background(), files)
}

// ParseContext is Parse until ctx ends, when it returns the context's error.
func (p *Parser) ParseContext(ctx context.Context, files []File) (*Config, []Warning, error) {
	switch {
	case len(files) == 0:
		return nil, nil, Faults{{File: "configuration", Message: "has no files; expected at least one"}}
	case len(files) > MaxFiles:
		return nil, nil, tooManyFiles("configuration")
	}
	begin := time.Now()
	last := p.read(ctx, files)
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	p.last = last
	p.Read = time.Since(begin)
	defer func() { p.Check = time.Since(begin) - p.Read }()
	var c *checker
	if p.checked != nil && len(judge(p.last).list) == 0 {
		c = p.checked.follow(p.good, p.last)
	}
	if c == nil {
		doc, faults, whole := join(p.last)
		if !whole {
			// What a refused file would have declared is missing, so references into it must not be
			// judged.
			return nil, nil, Faults(faults.sorted())
		}
		c = &checker{faults: faults, doc: doc, config: doc.config}
		c.check()
		if len(c.faults.list) > 0 {
			return nil, nil, Faults(c.faults.sorted())
		}
		c.warn()
	}
	p.good, p.checked = p.last, c
	return &c.config, c.warned.all(), nil
}

// largeFile is the size of a file from which no two are read at once.
const largeFile = 1 << 20

// read returns what each file says. Unchanged files are not read again.
func (p *Parser) read(ctx context.Context, files []File) []*fragment {
	known := make(map[string]*fragment, len(p.last))
	for _, f := range p.last {
		known[f.name] = f
	}
	all := make([]*fragment, len(files))
	var next atomic.Int64
	var done sync.WaitGroup
	var large sync.Mutex // one at a time: each may take its bound of memory
	for range min(runtime.GOMAXPROCS(0), len(files)) {
		done.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(files) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				f := files[i]
				sum := Sum(sha256.Sum256(f.Data))
				if all[i] = known[f.Name]; all[i] == nil || all[i].sum != sum {
					if len(f.Data) >= largeFile {
						large.Lock()
					}
					r, whole := read(ctx, f)
					if len(f.Data) >= largeFile {
						large.Unlock()
					}
					all[i] = &fragment{name: f.Name, sum: sum, doc: r.doc, faults: r.faults, whole: whole}
					if len(r.doc.includes) > 0 {
						all[i].head = f.Data
					}
				}
			}
		})
	}
	done.Wait()
	return all
}

// join merges what the files say, in their order. It does not modify the fragments.
func join(all []*fragment) (doc *document, faults findings, whole bool) {
	doc, whole = newDocument(), true
	faults = judge(all)
	doc.first = &spot{file: all[0].name, line: 1}
	for _, f := range all {
		whole = whole && f.whole
		faults.join(f.faults.list)
		faults.more = faults.more || f.faults.more
		for _, key := range sectionKeys {
			s := f.doc.sections[key]
			if s == nil {
				continue
			}
			if first := doc.sections[key]; first != nil {
				faults.add(s, "is already set at %v; expected %s in one file only", first, key)
				continue
			}
			doc.sections[key] = s
			doc.take(key, f.doc)
		}
		doc.ports = append(doc.ports, f.doc.ports...)
		doc.pools = append(doc.pools, f.doc.pools...)
		doc.gateways = append(doc.gateways, f.doc.gateways...)
		doc.vpcs = append(doc.vpcs, f.doc.vpcs...)
		doc.instances = append(doc.instances, f.doc.instances...)
	}
	for i := range doc.vpcs {
		doc.vpcs[i].detach()
	}
	return doc, faults, whole
}

// detach copies the lists that a check sorts, so that other readers keep theirs.
func (v *vpcText) detach() {
	v.routes, v.instances = slices.Clone(v.routes), slices.Clone(v.instances)
}

// take copies a section.
func (d *document) take(key string, from *document) {
	switch key {
	case "api":
		d.config.API = from.config.API
	case "metrics":
		d.config.Metrics = from.config.Metrics
	case "log":
		d.config.Log = from.config.Log
	case "dataplane":
		d.config.Dataplane = from.config.Dataplane
	case "sessions":
		d.config.Sessions, d.sessions = from.config.Sessions, from.sessions
	case "warnings":
		d.config.Warnings = from.config.Warnings
	case "reload":
		d.config.Reload = from.config.Reload
	}
}

// onlyVPCs reports whether a file holds only VPCs and instances.
func (f *fragment) onlyVPCs() bool {
	d := f.doc
	return f.whole && len(f.faults.list)+len(d.includes)+len(d.sections)+len(d.ports)+len(d.pools)+len(d.gateways) == 0
}

// sameVPCs reports whether two files declare VPCs of the same names.
func (f *fragment) sameVPCs(o *fragment) bool {
	names := func(f *fragment) []string {
		var list []string
		for _, v := range f.doc.vpcs {
			list = append(list, v.name.value)
		}
		slices.Sort(list)
		return list
	}
	return slices.Equal(names(f), names(o))
}

// follow checks the configuration in now, and reuses what c found when it checked the one in before
// without a fault. This works only if nothing outside the VPCs changed. Otherwise, and on any
// fault, it returns nil, and the caller runs a full check. It does not modify c.
func (c *checker) follow(before, now []*fragment) *checker {
	if len(before) != len(now) {
		return nil
	}
	changed := map[string]bool{} // files
	dirty := map[int]bool{}      // VPCs
	n := &checker{
		doc: &document{}, config: c.config, ports: c.ports, pools: c.pools, vpcs: c.vpcs, gateways: c.gateways, private: c.private,
		ids: c.ids, ranges: c.ranges, own: c.own, attached: maps.Clone(c.attached), outer: c.outer, udpPorts: maps.Clone(c.udpPorts),
	}
	for i, f := range now {
		o := before[i]
		if f == o {
			continue
		}
		if f.name != o.name || !f.onlyVPCs() || !o.onlyVPCs() || !f.sameVPCs(o) {
			return nil
		}
		changed[f.name] = true
		differ(o.doc.vpcs, f.doc.vpcs, func(v *vpcText) { dirty[c.vpcs[v.name.value]] = true })
		stray := false
		differ(o.doc.instances, f.doc.instances, func(i *instanceText) {
			v, known := c.vpcs[i.vpc.value]
			stray = stray || !known
			dirty[v] = true
		})
		if stray {
			return nil
		}
	}
	*n.doc = *c.doc
	n.doc.vpcs = slices.Clone(c.doc.vpcs)
	n.replace(changed, dirty, now)
	n.config.VPCs = slices.Clone(c.config.VPCs)
	order := slices.Sorted(maps.Keys(dirty))
	for port, o := range n.attached {
		if dirty[c.vpcs[o.name]] {
			delete(n.attached, port)
		}
	}
	for _, i := range order {
		n.config.VPCs[i] = n.checkVPC(i).share(&c.config.VPCs[i])
	}
	if len(n.external.attached)+len(c.external.attached)+len(n.external.untranslated) > 0 ||
		slices.ContainsFunc(c.external.untranslated, func(s span) bool { return dirty[s.index] }) {
		return nil
	}
	n.external.untranslated = c.external.untranslated
	for _, h := range slices.Concat(n.external.whole, n.external.shared) {
		n.notOwn(h)
	}
	stays := func(h claim) bool { return !dirty[h.vpc] }
	n.external.whole = mergeClaims(c.external.whole, n.external.whole, compareWhole, stays)
	n.external.shared = mergeClaims(c.external.shared, n.external.shared, compareShared, stays)
	n.checkDistinct()
	n.checkAmounts()
	if len(n.faults.list) > 0 {
		return nil
	}
	n.warnAgain(c, dirty)
	return n
}

// differ calls f for the elements of two lists that are not at the same place in both, line numbers
// included.
func differ[T any](old, new []T, f func(*T)) {
	for i := range max(len(old), len(new)) {
		if i < len(old) && i < len(new) && reflect.DeepEqual(&old[i], &new[i]) {
			continue
		}
		if i < len(old) {
			f(&old[i])
		}
		if i < len(new) {
			f(&new[i])
		}
	}
}

// replace updates the dirty VPCs and their instances with what the changed files now say.
func (c *checker) replace(changed map[string]bool, dirty map[int]bool, now []*fragment) {
	for v := range dirty {
		t := &c.doc.vpcs[v]
		kept := make([]instanceText, 0, len(t.instances)+1)
		for i := range t.instances {
			if !changed[t.instances[i].spot.file] {
				kept = append(kept, t.instances[i])
			}
		}
		t.instances = kept
	}
	for _, f := range now {
		if !changed[f.name] {
			continue
		}
		for i := range f.doc.vpcs {
			said := f.doc.vpcs[i]
			if !dirty[c.vpcs[said.name.value]] {
				continue
			}
			t := &c.doc.vpcs[c.vpcs[said.name.value]]
			said.detach()
			said.instances = append(said.instances, t.instances...)
			*t = said
		}
	}
	for _, f := range now {
		if !changed[f.name] {
			continue
		}
		for _, i := range f.doc.instances {
			if v := c.vpcs[i.vpc.value]; dirty[v] {
				c.doc.vpcs[v].instances = append(c.doc.vpcs[v].instances, i)
			}
		}
	}
}

// share returns v with the lists of o where they are the same.
func (v VPC) share(o *VPC) VPC {
	if slices.EqualFunc(v.Attach, o.Attach, func(a, b Attachment) bool { return same(&a, &b) }) {
		v.Attach = o.Attach
	}
	if slices.Equal(v.Subnets, o.Subnets) {
		v.Subnets = o.Subnets
	}
	if slices.Equal(v.Routes, o.Routes) {
		v.Routes = o.Routes
	}
	if len(v.Instances) == len(o.Instances) {
		equal := true
		for i := range v.Instances {
			equal = equal && same(&v.Instances[i], &o.Instances[i])
		}
		if equal {
			v.Instances = o.Instances
		}
	}
	return v
}

// mergeClaims returns those of a sorted list that stay together with more, sorted.
func mergeClaims(list, more []claim, order func(a, b claim) int, stays func(claim) bool) []claim {
	slices.SortStableFunc(more, order)
	all := make([]claim, 0, len(list)+len(more))
	j := 0
	for _, h := range list {
		if !stays(h) {
			continue
		}
		for ; j < len(more) && order(more[j], h) <= 0; j++ {
			all = append(all, more[j])
		}
		all = append(all, h)
	}
	return append(all, more[j:]...)
}

func compareWhole(a, b claim) int { return a.address.Compare(b.address) }

func compareShared(a, b claim) int {
	return cmp.Or(a.address.Compare(b.address), cmp.Compare(a.ports.first, b.ports.first))
}
