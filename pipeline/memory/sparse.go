// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"cmp"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/pipeline/fault"
)

// NewSparse makes a segment of the layout's size without any page: it takes no memory but what Grow
// gives it. It is sealed against shrinking and growing, so that nobody who holds the descriptor can
// take pages' places away from others. Its pages are ordinary ones: huge pages would have to be set
// aside for whatever may come, or be missing when it does.
func (l *Layout) NewSparse(name string) (*Segment, error) {
	if err := fault.Error("segment." + name); err != nil {
		return nil, fmt.Errorf("segment %s: %w", name, err)
	}
	fd, err := unix.MemfdCreate("weir-"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("segment %s: memfd_create: %w", name, err)
	}
	if err = unix.Ftruncate(fd, int64(roundUp(l.size, pageSize))); err != nil {
		err = fmt.Errorf("segment %s: ftruncate: %w", name, err)
	} else if err = sealSize(fd); err != nil {
		err = fmt.Errorf("segment %s: %w", name, err)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	s := new(Segment)
	if err := s.MapSparse(fd); err != nil {
		return nil, fmt.Errorf("segment %s: %w", name, err)
	}
	return s, nil
}

var pageSize = uint64(os.Getpagesize())

// MapSparse is Map for a sparse segment: it populates nothing.
func (s *Segment) MapSparse(fd int) error {
	return s.mapTo(fd, unix.PROT_READ|unix.PROT_WRITE, 0)
}

// Align makes the next section begin at a page.
func (l *Layout) Align() { l.size = roundUp(l.size, pageSize) }

// Grow takes the pages that bytes begin to end of a sparse segment lie on, on the NUMA nodes given,
// by turns if there are several, or wherever the kernel puts them; and populates them. What is
// there already stays. On an error nothing has been taken. What the kernel refuses of the nodes is
// no fault: refused says why.
func (s *Segment) Grow(begin, end uint64, nodes []int) (refused, err error) {
	s.check(begin, end-begin, 1)
	first, last := begin, end
	begin, end = begin/pageSize*pageSize, roundUp(end, pageSize)
	if err := fault.Error("segment.grow"); err != nil {
		return nil, fmt.Errorf("no memory for %d KiB more: %w", (end-begin)>>10, err)
	}
	refused = On(known(nodes), func() {
		for err = unix.EINTR; err == unix.EINTR; { // by signals of Go's scheduler
			err = unix.Fallocate(s.fd, 0, int64(begin), int64(end-begin)) // what a failing call has taken the kernel gives back
		}
	})
	if err != nil {
		return refused, fmt.Errorf("no memory for %d KiB more: %w", (end-begin)>>10, err)
	}
	if err = s.Populate(begin, end); err != nil {
		s.Shrink(first, last)
	}
	return refused, err
}

// Shrink gives back the pages that lie wholly between begin and end: they are all zero when Grow
// takes them again. Nobody may use them.
func (s *Segment) Shrink(begin, end uint64) {
	if begin, end = roundUp(begin, pageSize), end/pageSize*pageSize; begin < end {
		// What cannot be given back is kept.
		_ = unix.Fallocate(s.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(begin), int64(end-begin))
	}
}

// Populate maps pages that somebody has taken by Grow into this process, so that no later access
// faults. It allocates nothing.
func (s *Segment) Populate(begin, end uint64) error {
	s.check(begin, end-begin, 1)
	begin, end = begin/pageSize*pageSize, roundUp(end, pageSize)
	err := cmp.Or(fault.Error("segment.populate"), error(unix.EINTR))
	for err == unix.EINTR || err == unix.EAGAIN {
		err = unix.Madvise(unsafe.Slice((*byte)(unsafe.Add(s.base, begin)), end-begin), unix.MADV_POPULATE_WRITE)
	}
	if err == unix.EINVAL { // before Linux 5.14
		for err = nil; begin < end; begin += pageSize {
			atomic.AddUint32((*uint32)(unsafe.Add(s.base, begin)), 0)
		}
	}
	if err != nil {
		return fmt.Errorf("no memory to map %d KiB more: %w", (end-begin)>>10, err)
	}
	return nil
}

// Taken returns how many bytes of memory the segment takes.
func (s *Segment) Taken() uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(s.fd, &st); err != nil {
		return 0
	}
	return uint64(st.Blocks) * 512
}
