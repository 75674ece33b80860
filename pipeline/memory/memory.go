// SPDX-License-Identifier: Apache-2.0

// Package memory gives typed access to memory outside the Go heap: segments that two processes
// share, or private ones of the same form. What lies in a segment is flat: fixed-size values and
// offsets, no pointers. This is the one package that turns an address and an offset into a Go
// value.
package memory

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"os"
	"reflect"
	"slices"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/pipeline/fault"
)

// HugePage is the size that a segment on huge pages is a multiple of.
const HugePage = 2 << 20

// Segment is one mapping. Whoever called New or Map owns it and calls Close. Copies share the
// mapping.
type Segment struct {
	base unsafe.Pointer
	size uintptr
	fd   int
	huge bool

	readOnly bool
	refused  error
}

// New makes a zeroed segment of at least size bytes behind a memfd, on huge pages if huge is set
// and enough are free, and populates it: no later access faults, and a lack of memory is an error
// here, not a signal later.
func New(name string, size uint64, huge bool) (*Segment, error) {
	return (&Layout{size: size}).New(name, huge)
}

// New is the function New for a segment of the layout's size, with each section on the NUMA nodes
// that Place has said. What the kernel refuses of that is no fault, and PlacementRefused says why.
func (l *Layout) New(name string, huge bool) (*Segment, error) {
	if huge {
		if s, err := create(name, roundUp(l.size, HugePage), l.parts, unix.MFD_HUGETLB); err == nil {
			s.huge = true
			return s, nil
		}
	}
	return create(name, roundUp(l.size, uint64(os.Getpagesize())), l.parts, 0)
}

func create(name string, size uint64, parts []part, flags int) (*Segment, error) {
	if err := fault.Error("segment." + name); err != nil {
		return nil, fmt.Errorf("segment %s: %w", name, err)
	}
	if base := onHeap(size); base != nil {
		return &Segment{base: base, size: uintptr(size), fd: -1}, nil
	}
	fd, err := unix.MemfdCreate("weir-"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flags)
	if err != nil {
		return nil, fmt.Errorf("segment %s: memfd_create: %w", name, err)
	}
	refused, err := allocate(fd, size, parts)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("segment %s: no memory for %d MiB: %w; lower dataplane.sessions or free memory", name, size>>20, err)
	}
	if err := sealSize(fd); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("segment %s: %w", name, err)
	}
	s := new(Segment)
	if err := s.Map(fd); err != nil {
		return nil, fmt.Errorf("segment %s: %w", name, err)
	}
	s.refused = refused
	return s, nil
}

// allocate takes every page of a new segment now, so that populating cannot end in SIGBUS when
// memory is short. The pages come from where the policy of the thread says that calls fallocate. A
// policy of the mapping (mbind) would do for plain pages, and not for huge ones.
func allocate(fd int, size uint64, parts []part) (refused, err error) {
	begin, nodes := uint64(0), []int(nil)
	for _, p := range append(slices.Clip(parts), part{begin: size}) {
		if p.begin > begin && err == nil {
			why := On(nodes, func() {
				for err = unix.EINTR; err == unix.EINTR; { // by signals of Go's scheduler
					err = unix.Fallocate(fd, 0, int64(begin), int64(p.begin-begin))
				}
			})
			refused = cmp.Or(refused, why)
		}
		begin, nodes = p.begin, p.nodes
	}
	return refused, err
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// sizeSeals keep whoever holds a descriptor from taking pages away from those who have them mapped,
// whom the next access would kill.
const sizeSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

func sealSize(fd int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, sizeSeals); err != nil {
		return fmt.Errorf("F_ADD_SEALS: %w", err)
	}
	return nil
}

// Map maps the segment behind fd into s, which must be zero or closed, populates it and takes fd
// over, also when it fails. A segment whose size is not sealed is refused. It allocates nothing.
func (s *Segment) Map(fd int) error {
	return s.mapTo(fd, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_POPULATE)
}

// MapRead is Map for whoever never writes: who does, dies.
func (s *Segment) MapRead(fd int) error {
	err := s.mapTo(fd, unix.PROT_READ, unix.MAP_POPULATE)
	s.readOnly = true
	return err
}

// ReadOnly reports whether the segment was mapped by MapRead.
func (s *Segment) ReadOnly() bool { return s.readOnly }

func (s *Segment) mapTo(fd, protection, populate int) error {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err == nil && seals&sizeSeals != sizeSeals {
		err = fmt.Errorf("its size is not sealed: expected seals %#x, it has %#x", sizeSeals, seals)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("not a segment of weir's: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return fmt.Errorf("fstat: %w", err)
	}
	if st.Size <= 0 {
		unix.Close(fd)
		return errors.New("the segment is empty")
	}
	p, err := unix.MmapPtr(fd, 0, nil, uintptr(st.Size), protection, unix.MAP_SHARED|populate)
	if failed := fault.Error("segment.map"); err == nil && failed != nil {
		unix.MunmapPtr(p, uintptr(st.Size))
		err = failed
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("mmap of %d MiB: %w", st.Size>>20, err)
	}
	// Tenants' addresses are in here: keep them out of core dumps.
	_ = unix.Madvise(unsafe.Slice((*byte)(p), st.Size), unix.MADV_DONTDUMP)
	*s = Segment{base: p, size: uintptr(st.Size), fd: fd}
	return nil
}

// FD returns the descriptor, to be handed to another process. The segment keeps it.
func (s *Segment) FD() int { return s.fd }

// Size returns the size in bytes.
func (s *Segment) Size() uint64 { return uint64(s.size) }

// Huge reports whether New found huge pages for it.
func (s *Segment) Huge() bool { return s.huge }

// PlacementRefused tells why parts of a new segment may lie on other NUMA nodes than was asked; nil
// if none do.
func (s *Segment) PlacementRefused() error { return s.refused }

// Close unmaps the segment and closes its descriptor. Nothing that points into it may be used
// afterwards.
func (s *Segment) Close() error {
	if s.base == nil {
		return nil
	}
	var err error
	if s.fd >= 0 { // else it lies on the heap
		err = unix.MunmapPtr(s.base, s.size)
		if e := unix.Close(s.fd); err == nil {
			err = e
		}
	}
	s.base, s.size = nil, 0
	return err
}

// At returns the value of type T at offset off. It panics when that lies outside of the segment or
// is not aligned.
func At[T any](s *Segment, off uint64) *T {
	var t *T // never followed; a T itself, if large, would be allocated
	s.check(off, uint64(unsafe.Sizeof(*t)), uint64(unsafe.Alignof(*t)))
	return (*T)(unsafe.Add(s.base, off))
}

// Slice returns the n values of type T from offset off. It panics like At.
func Slice[T any](s *Segment, off uint64, n int) []T {
	if n == 0 {
		return nil
	}
	var t T
	size := uint64(unsafe.Sizeof(t))
	if n < 0 || uint64(n) > uint64(s.size)/size {
		panic(fmt.Sprintf("memory: %d values of %d bytes do not fit into %d", n, size, s.size))
	}
	s.check(off, size*uint64(n), uint64(unsafe.Alignof(t)))
	return unsafe.Slice((*T)(unsafe.Add(s.base, off)), n)
}

// Read copies a value to which its owner goes on writing with plain stores. Each word of it, eight
// bytes, is one that was there; together they may be of different times. The value consists of such
// words.
func Read[T any](from *T) (to T) {
	copyWords(unsafe.Pointer(&to), unsafe.Pointer(from), unsafe.Sizeof(to)/8)
	return to
}

func (s *Segment) check(off, size, align uint64) {
	if off > uint64(s.size) || size > uint64(s.size)-off || off%align != 0 {
		panic(fmt.Sprintf("memory: offset %d, size %d, alignment %d: outside of a segment of %d bytes", off, size, align, s.size))
	}
}

// Layout adds sections one after the other and knows the size in the end. Every section starts at a
// cache line.
type Layout struct {
	size  uint64
	parts []part
}

// part is what lies on the same NUMA nodes, up to the next part.
type part struct {
	begin uint64
	nodes []int
}

// Place says on which NUMA nodes the sections lie that are added from now on: on one, on several by
// turns, or, with none but -1, wherever the kernel puts them. Where that changes a new page begins,
// as large as there may be.
func (l *Layout) Place(nodes ...int) {
	nodes = known(nodes)
	var now []int
	if n := len(l.parts); n > 0 {
		now = l.parts[n-1].nodes
	}
	if slices.Equal(now, nodes) {
		return
	}
	l.size = roundUp(l.size, HugePage)
	l.parts = append(l.parts, part{l.size, nodes})
}

// Line is the size of a cache line.
const Line = 64

// Add reserves n values of type T and returns their offset.
func Add[T any](l *Layout, n int) uint64 {
	var t T
	off := roundUp(l.size, Line)
	l.size = off + uint64(unsafe.Sizeof(t))*uint64(n)
	return off
}

// Size returns the size of all sections.
func (l *Layout) Size() uint64 { return roundUp(l.size, Line) }

// Header stands at offset 0 of every shared segment. Ready is written last.
type Header struct {
	Magic  uint64
	Layout uint64 // hash over the types that lie in the segment
	Size   uint64
	Sum    uint64 // SealWhole's: CRC-32C of everything behind the header
	Ready  uint64
}

const magic = 0x31726965772e2e2e // "...weir1"

// Seal writes the header, Ready last: a segment whose maker died half-way is never accepted.
func (s *Segment) Seal(layout uint64) {
	h := At[Header](s, 0)
	h.Magic, h.Layout, h.Size = magic, layout, uint64(s.size)
	atomic.StoreUint64(&h.Ready, 1)
}

// SealWhole is Seal for a segment that nobody changes from now on: its header has a checksum of all
// of it, and where the kernel can (Linux 5.1) no other process can map it to write. The maker may
// write into it anew when nobody else uses it any more, and then seals it again.
func (s *Segment) SealWhole(layout uint64) {
	h := At[Header](s, 0)
	atomic.StoreUint64(&h.Ready, 0)
	h.Sum = s.sum()
	s.Seal(layout)
	if s.fd >= 0 {
		_, _ = unix.FcntlInt(uintptr(s.fd), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE)
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (s *Segment) sum() uint64 {
	const behind = unsafe.Sizeof(Header{})
	return uint64(crc32.Update(0, castagnoli, unsafe.Slice((*byte)(unsafe.Add(s.base, behind)), s.size-behind)))
}

// CheckWhole is Check for a segment that SealWhole has sealed, and reads all of it.
func (s *Segment) CheckWhole(layout uint64) error {
	if err := s.Check(layout); err != nil {
		return err
	}
	if h := At[Header](s, 0); h.Sum != s.sum() {
		return ErrDamaged
	}
	return nil
}

// ErrDamaged says that a segment is not what its maker wrote.
var ErrDamaged = errors.New("its checksum is wrong: the memory has been damaged")

// Check reports whether the segment was sealed by a program with the same layout.
func (s *Segment) Check(layout uint64) error {
	if s.size < unsafe.Sizeof(Header{}) {
		return fmt.Errorf("a segment of %d bytes holds no header", s.size)
	}
	h := At[Header](s, 0)
	switch {
	case atomic.LoadUint64(&h.Ready) != 1 || h.Magic != magic:
		return errors.New("not a weir segment, or its maker died before it was whole")
	case h.Layout != layout:
		return fmt.Errorf("segment layout %016x, this program has %016x: the two processes are of different versions; restart both", h.Layout, layout)
	case h.Size != uint64(s.size):
		return fmt.Errorf("segment of %d bytes, its header says %d", s.size, h.Size)
	}
	return nil
}

// meaning goes into every layout hash. Linked in with another value (-ldflags "-X
// weir/pipeline/memory.meaning=..."), it makes a program that refuses the segments of others though
// the types are the same: for when a field's meaning changes, and for tests.
var meaning = "2"

// Hash returns a number that changes when any of the types' layout changes. It panics on a type
// that cannot lie in a segment.
func Hash(values ...any) uint64 {
	h := fnv.New64a()
	h.Write([]byte(meaning))
	for _, v := range values {
		describe(h, reflect.TypeOf(v))
	}
	return h.Sum64()
}

func describe(w interface{ Write([]byte) (int, error) }, t reflect.Type) {
	switch t.Kind() {
	case reflect.Struct:
		fmt.Fprintf(w, "%s{%d ", t.Name(), t.Size())
		for i := range t.NumField() {
			f := t.Field(i)
			fmt.Fprintf(w, "%s@%d ", f.Name, f.Offset)
			describe(w, f.Type)
		}
		fmt.Fprint(w, "}")
	case reflect.Array:
		fmt.Fprintf(w, "[%d]", t.Len())
		describe(w, t.Elem())
	case reflect.Bool, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		fmt.Fprintf(w, "%s ", t.Kind())
	default:
		panic(fmt.Sprintf("memory: a %s cannot lie in a segment", t))
	}
}
