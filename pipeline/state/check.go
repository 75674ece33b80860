// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"

	"weir/pipeline/session"
)

// Check holds the state against itself: each session table (session.Table.Check), and the mappings,
// the limits' counts and the lists of unconfirmed sessions against the sessions. No worker may run
// meanwhile. It is for tests and for finding faults.
func (s *State) Check() error {
	vpcs, instances := make([]Usage, s.Room().VPCs), make([]Usage, s.Room().Instances)
	holds := map[uint32]uint32{}
	for w := range s.Workers() {
		t := s.Table(w)
		if err := t.Check(); err != nil {
			return fmt.Errorf("worker %d: %w", w, err)
		}
		for ref := range uint32(t.Capacity()) {
			e := t.At(ref)
			if e.Load() == 0 {
				continue
			}
			if int(e.VPC) >= len(vpcs) || int(e.Instance) >= len(instances) {
				return fmt.Errorf("worker %d: session %d is of VPC %d and instance %d, which are none", w, ref, e.VPC, e.Instance)
			}
			vpcs[e.VPC].Sessions++
			instances[e.Instance].Sessions++
			if e.State() == session.Unconfirmed {
				instances[e.Instance].Unconfirmed++
				vpcs[e.VPC].Unconfirmed++
			}
			if e.Mapping != session.None {
				holds[e.Mapping]++
			}
		}
	}
	if err := s.Mappings().Check(holds); err != nil {
		return err
	}
	for i, n := range vpcs {
		if s.VPCs[i] != n {
			return fmt.Errorf("VPC %d: %+v are counted, %+v live", i, s.VPCs[i], n)
		}
	}
	for i := range instances {
		if got := &s.Instances[i]; got.Sessions != instances[i].Sessions || got.Unconfirmed != instances[i].Unconfirmed {
			return fmt.Errorf("instance %d: %d sessions are counted, %d of them unconfirmed; %d live, %d of them unconfirmed",
				i, got.Sessions, got.Unconfirmed, instances[i].Sessions, instances[i].Unconfirmed)
		}
	}
	return nil
}
