// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// present counts the pages of a mapping, from first to last, that this process can use without a
// fault.
func present(t *testing.T, s *Segment, begin, end uint64) (n int) {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries := make([]byte, 8*(end-begin)/pageSize)
	if _, err := f.ReadAt(entries, int64((uint64(uintptr(s.base))+begin)/pageSize*8)); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(entries); i += 8 {
		if binary.LittleEndian.Uint64(entries[i:])>>63 != 0 {
			n++
		}
	}
	return n
}

// A sparse segment takes the memory that it grew to and no more, in every mapping; its size is for
// good; what it cannot get it does not keep in part.
func TestSparse(t *testing.T) {
	var l Layout
	Add[Header](&l, 1)
	l.Align()
	off := Add[uint64](&l, 1<<30) // 8 GiB
	s, err := l.NewSparse("test")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Taken() != 0 {
		t.Errorf("%d bytes are taken by nothing", s.Taken())
	}
	fd, err := unix.Dup(s.FD())
	if err != nil {
		t.Fatal(err)
	}
	other := new(Segment)
	if err := other.MapSparse(fd); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	const pages = 64
	end := off + pages*pageSize
	if _, err := s.Grow(off, end, nil); err != nil {
		t.Fatal(err)
	}
	if s.Taken() != pages*pageSize || present(t, s, off, end) != pages || present(t, other, off, end) != 0 {
		t.Errorf("%d bytes taken, %d and %d pages mapped; want %d bytes, %d pages and none", s.Taken(), present(t, s, off, end), present(t, other, off, end), pages*pageSize, pages)
	}
	if err := other.Populate(off, end); err != nil {
		t.Fatal(err)
	}
	if n := present(t, other, off, end); n != pages {
		t.Errorf("%d of %d pages are populated", n, pages)
	}
	Slice[uint64](s, off, 1<<30)[pages*512-1] = 7
	if got := Slice[uint64](other, off, 1<<30)[pages*512-1]; got != 7 {
		t.Errorf("the other mapping reads %d", got)
	}
	// What is there stays when it grows over it; what is half another's page is not given back.
	if _, err := s.Grow(off+pageSize/2, end+pageSize, nil); err != nil {
		t.Fatal(err)
	}
	s.Shrink(end-pageSize/2, end+pageSize)
	if got := Slice[uint64](other, off, 1<<30)[pages*512-1]; got != 7 || s.Taken() != pages*pageSize {
		t.Errorf("after growing and shrinking %d stands there, %d bytes are taken", got, s.Taken())
	}
	for _, size := range []int64{0, 16 << 30} {
		if err := unix.Ftruncate(s.FD(), size); err != unix.EPERM {
			t.Errorf("a segment cut to %d: %v", size, err)
		}
	}
	kept, null := instead(t, s.FD())
	if _, err := s.Grow(end, end+pages*pageSize, nil); err == nil || !strings.Contains(err.Error(), "no memory for 256 KiB more") {
		t.Errorf("without memory: %v", err)
	}
	if err := new(Segment).MapSparse(null); err == nil {
		t.Error("a device is taken for a segment")
	}
	if err := unix.Dup3(kept, s.FD(), unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	unix.Close(kept)
	if s.Taken() != pages*pageSize {
		t.Errorf("%d bytes are taken after a failure", s.Taken())
	}
	if unsafe.Sizeof(Header{}) > uintptr(pageSize) {
		t.Error("a header is more than a page")
	}
}

// instead puts a device in the place of a descriptor: nothing can be allocated there. kept is what
// stood there.
func instead(t *testing.T, fd int) (kept, null int) {
	t.Helper()
	kept, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if null, err = unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Dup3(null, fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	return kept, null
}
