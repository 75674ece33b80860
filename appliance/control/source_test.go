// SPDX-License-Identifier: Apache-2.0

package control

import (
	"reflect"
	"testing"

	"weir/config"
)

// What a generation keeps of its files is read back as it was; what is cut off anywhere is refused,
// or is fewer whole files.
func TestSource(t *testing.T) {
	files := []config.File{{Name: "a.yaml", Data: []byte("version: 1\n")}, {Name: "empty.yaml", Data: []byte{}}, {Name: "", Data: make([]byte, 300)}}
	b := source(files)
	if got, err := unpack(b); err != nil || !reflect.DeepEqual(got, files) {
		t.Errorf("%q, %v; expected %q", got, err, files)
	}
	for n := range b {
		if got, err := unpack(b[:n]); err == nil && len(got) > 0 && !reflect.DeepEqual(got, files[:len(got)]) {
			t.Errorf("of %d bytes: %q", n, got)
		}
	}
}
