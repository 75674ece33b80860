// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

type inner struct {
	A uint16
	B [3]uint8
}

type record struct {
	N uint64
	I inner
}

func TestSegmentIsSharedAndChecked(t *testing.T) {
	var l Layout
	Add[Header](&l, 1)
	off := Add[record](&l, 100)
	s, err := New("test", l.Size(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	layout := Hash(record{})
	if err := s.Check(layout); err == nil {
		t.Error("a segment that was never sealed is accepted")
	}
	Slice[record](s, off, 100)[99].N = 7
	s.Seal(layout)

	fd, err := unix.Dup(s.FD())
	if err != nil {
		t.Fatal(err)
	}
	o := new(Segment)
	if err := o.Map(fd); err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := o.Check(layout); err != nil {
		t.Error(err)
	}
	if got := Slice[record](o, off, 100)[99].N; got != 7 {
		t.Errorf("the second mapping reads %d, expected 7", got)
	}
	if err := o.Check(Hash(inner{})); err == nil || !strings.Contains(err.Error(), "different versions") {
		t.Errorf("another layout: %v", err)
	}
}

func TestOutsideOfTheSegmentPanics(t *testing.T) {
	s, err := New("test", 4096, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, f := range map[string]func(){
		"behind the end": func() { At[record](s, 4096) },
		"over the end":   func() { At[record](s, 4096-8) },
		"not aligned":    func() { At[uint64](s, 4) },
		"too many":       func() { Slice[uint64](s, 8, 512) },
		"huge count":     func() { Slice[uint64](s, 0, 1<<62) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func TestHashSeesEveryChange(t *testing.T) {
	type a struct{ X, Y uint32 }
	type b struct{ Y, X uint32 }
	type c struct{ X, Y int32 }
	seen := map[uint64]string{}
	for name, v := range map[string]any{"a": a{}, "b": b{}, "c": c{}, "inner": inner{}, "array": [2]uint32{}} {
		h := Hash(v)
		if seen[h] != "" {
			t.Errorf("%s and %s have one hash", name, seen[h])
		}
		seen[h] = name
	}
	defer func() {
		if recover() == nil {
			t.Error("a type with a pointer is accepted")
		}
	}()
	Hash(struct{ P *int }{})
}

// Only a segment whose size nobody can change is mapped: who could, could kill everybody else.
func TestUnsealedIsRefused(t *testing.T) {
	for name, seals := range map[string]int{"no seals": 0, "it can grow": unix.F_SEAL_SHRINK, "it can shrink": unix.F_SEAL_GROW} {
		for way, attach := range map[string]func(*Segment, int) error{"Map": (*Segment).Map, "MapRead": (*Segment).MapRead, "MapSparse": (*Segment).MapSparse} {
			fd, err := unix.MemfdCreate("test", unix.MFD_ALLOW_SEALING)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Ftruncate(fd, 4096); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
				t.Fatal(err)
			}
			if err := attach(new(Segment), fd); err == nil || !strings.Contains(err.Error(), "not sealed") {
				t.Errorf("%s, %s: %v", name, way, err)
			}
		}
	}
	s, err := New("test", 4096, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, size := range []int64{0, 8192} {
		if err := unix.Ftruncate(s.FD(), size); err == nil {
			t.Errorf("a segment can be made %d bytes long", size)
		}
	}
}

// What is sealed whole is read by others and changed by its maker alone; a bit that flips is found.
func TestWhole(t *testing.T) {
	var l Layout
	Add[Header](&l, 1)
	off := Add[record](&l, 1000)
	s, err := l.New("test", false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	layout := Hash(record{})
	for round := range uint64(2) { // the maker uses its memory again
		Slice[record](s, off, 1000)[999].N = round
		s.SealWhole(layout)
		dup := func() int {
			fd, err := unix.Dup(s.FD())
			if err != nil {
				t.Fatal(err)
			}
			return fd
		}
		if err := new(Segment).Map(dup()); err == nil {
			t.Error("another process may write")
		}
		o := new(Segment)
		if err := o.MapRead(dup()); err != nil {
			t.Fatal(err)
		}
		if err := o.CheckWhole(layout); err != nil {
			t.Error(err)
		}
		for at := uint64(unsafe.Sizeof(Header{})); at < s.Size(); at += 997 {
			b := At[byte](s, at)
			*b ^= 1 << (at % 8)
			if err := o.CheckWhole(layout); err != ErrDamaged {
				t.Errorf("a bit of byte %d is another: %v", at, err)
			}
			*b ^= 1 << (at % 8)
		}
		o.Close()
	}
}
