// SPDX-License-Identifier: Apache-2.0

package attach

import "testing"

func TestWord(t *testing.T) {
	for _, c := range []struct {
		port         int
		kind         Kind
		tag          uint32
		outer, inner uint16
		text         string
	}{
		{0, Untagged, 0, 0, 0, "port 0"},
		{31, Untagged, 0, 0, 0, "port 31"},
		{3, VLAN, 4094, 4094, 0, "port 3, VLAN 4094"},
		{31, QinQ, 4094<<12 | 1, 4094, 1, "port 31, VLAN 4094.1"},
		{1, VXLAN, 1<<24 - 1, 0, 0, "port 1, VXLAN 16777215"},
		{2, Geneve, 7, 0, 0, "port 2, Geneve 7"},
	} {
		w := Make(c.port, c.kind, c.tag)
		if w.Port() != c.port || w.Kind() != c.kind || w.Tag() != c.tag || w.Outer() != c.outer || w.Inner() != c.inner || w.String() != c.text {
			t.Errorf("%+v is %v: %d %d %d %d %d", c, w, w.Port(), w.Kind(), w.Tag(), w.Outer(), w.Inner())
		}
		if w == None || w.Plain() != (c.kind == Untagged) || w.Tunnel() != (c.kind >= VXLAN) || w.Plain() && w != Port(c.port) {
			t.Errorf("%v: plain %v, tunnel %v", w, w.Plain(), w.Tunnel())
		}
	}
	if None.String() != "nowhere" || None.Kind() < numKinds {
		t.Errorf("None is %v", None)
	}
}
