// SPDX-License-Identifier: Apache-2.0

package dpdk

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a killed start has left is removed by the next; what another one still uses, is new, or
// belongs to somebody else stays.
func TestRemoveLeftovers(t *testing.T) {
	tmp := t.TempDir()
	old := time.Now().Add(-time.Hour)
	for name, at := range map[string]time.Time{"weir-eal-killed": old, "weir-eal-used": old, "weir-eal-new": time.Now(), "other": old} {
		path := filepath.Join(tmp, name)
		if err := errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "x"), nil, 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(tmp, "other"), filepath.Join(tmp, "weir-eal-link")); err != nil {
		t.Fatal(err)
	}
	used, err := os.Open(filepath.Join(tmp, "weir-eal-used"))
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	if err := unix.Flock(int(used.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	removeLeftovers(tmp)
	entries, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{"other", "weir-eal-link", "weir-eal-new", "weir-eal-used"}; !slices.Equal(left, want) {
		t.Errorf("left: %v, expected %v", left, want)
	}
	if inside, _ := os.ReadDir(filepath.Join(tmp, "other")); len(inside) != 1 {
		t.Error("a link was followed")
	}
}
