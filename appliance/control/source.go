// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/binary"
	"errors"

	"weir/config"
)

// source packs files as a generation keeps them: of each its name and its text, behind their
// lengths.
func source(files []config.File) []byte {
	size := 0
	for _, f := range files {
		size += len(f.Name) + len(f.Data) + 2*binary.MaxVarintLen64
	}
	b := make([]byte, 0, size)
	for _, f := range files {
		b = append(binary.AppendUvarint(b, uint64(len(f.Name))), f.Name...)
		b = append(binary.AppendUvarint(b, uint64(len(f.Data))), f.Data...)
	}
	return b
}

// unpack returns the files that source has packed. Their text aliases b.
func unpack(b []byte) ([]config.File, error) {
	next := func() ([]byte, bool) {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			return nil, false
		}
		part := b[k : k+int(n)]
		b = b[k+int(n):]
		return part, true
	}
	var files []config.File
	for len(b) > 0 {
		name, ok := next()
		data, whole := next()
		if !ok || !whole {
			return nil, errors.New("its text is cut short")
		}
		files = append(files, config.File{Name: string(name), Data: data})
	}
	return files, nil
}
