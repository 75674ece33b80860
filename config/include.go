// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"
)

// Files of lesser writers lie in folders that a main file names, with the sections that they may
// have: include. The main files are the path itself, or those of the directory. Only they include.

// includeText is one folder.
type includeText struct {
	spot *spot
	path at[string]
	may  []at[string]
}

var (
	includeKeys = []string{"path", "may"}
	// mayBe are the sections that lesser files can be given: none that all tenants share.
	mayBe = []string{"ports", "pools", "gateways", "vpcs", "instances"}
)

func (r *reader) include(v value) {
	for e := range r.list(v, "folders") {
		i := includeText{spot: e.spot}
		given := false
		for key, v := range r.object(e, includeKeys) {
			switch key {
			case "path":
				i.path = text(r, v, parseFolder)
			case "may":
				i.may, given = texts(r, v, "sections", words(mayBe...)), true
			}
		}
		require(r, e, i.path, "path")
		if !given {
			r.requireKey(e, "may")
		}
		r.doc.includes = append(r.doc.includes, i)
	}
}

// folder returns the directory that a file includes.
func folder(file, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(filepath.Dir(file), path)
}

var includeKey = regexp.MustCompile(`(?m)^include:.*$`)

// foldersOf finds the folders that a file includes without reading all of it: what its first line
// include: and the indented ones after it say. The parser, which reads all of it, tells when that
// is not what the file says.
func foldersOf(f File) (dirs []string) {
	at := includeKey.FindIndex(f.Data)
	if at == nil {
		return nil
	}
	text := f.Data[at[0]:]
	end := at[1] - at[0]
	for end < len(text) {
		next := len(text)
		if i := bytes.IndexByte(text[end+1:], '\n'); i >= 0 {
			next = end + 1 + i
		}
		if line := bytes.TrimRight(text[min(end+1, len(text)):next], "\r"); len(line) > 0 && line[0] != ' ' && line[0] != '#' && line[0] != '-' {
			break
		}
		end = next
	}
	if text = text[:end]; tooHeavy(text) != nil {
		return nil
	}
	var said struct {
		Include []struct {
			Path string
			May  []string
		}
	}
	if yaml.Unmarshal(text, &said) != nil {
		return nil
	}
	for _, i := range said.Include {
		if _, err := parseFolder(i.Path); err == nil {
			dirs = append(dirs, folder(f.Name, i.Path))
		}
	}
	return dirs
}

// visit reads the files at path, one by one: the main ones, then those of the folders that they
// include. A file that cannot be read is a fault.
func visit(path string, each func(File)) error {
	names, err := namesAt(path)
	if err != nil {
		return err
	}
	var faults Faults
	count, size := 0, 0
	take := func(name string, read func() ([]byte, error)) (f File, err error) {
		if count++; count > MaxFiles {
			return f, tooManyFiles(path)
		}
		data, e := read()
		if e != nil {
			faults = append(faults, unreadable(name, e))
			return f, nil
		}
		if size += len(data); size > MaxSize {
			return f, tooMuch(path)
		}
		f = File{name, data}
		each(f)
		return f, nil
	}
	var folders []string
	for _, name := range names {
		f, err := take(name, func() ([]byte, error) { return readFile(name) })
		if err != nil {
			return err
		}
		for _, dir := range foldersOf(f) {
			if dir != filepath.Dir(name) && !slices.Contains(folders, dir) {
				folders = append(folders, dir)
			}
		}
	}
	for _, dir := range folders {
		entries, err := entriesOf(dir)
		if err != nil {
			faults = append(faults, unreadable(dir, err))
			continue
		}
		// What its writers link to from there stays in there: they may not read what control may.
		root, err := os.OpenRoot(dir)
		if err != nil {
			faults = append(faults, unreadable(dir, err))
			continue
		}
		for _, name := range entries {
			_, err := take(filepath.Join(dir, name), func() ([]byte, error) {
				f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
				if err != nil {
					return nil, err
				}
				defer f.Close()
				return readAll(f)
			})
			if err != nil {
				root.Close()
				return err
			}
		}
		root.Close()
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}

// includedBy returns the folders that the main files at path include.
func includedBy(path string) (dirs []string) {
	names, err := namesAt(path)
	if err != nil {
		return nil
	}
	for _, name := range names {
		if data, err := readFile(name); err == nil {
			dirs = append(dirs, foldersOf(File{name, data})...)
		}
	}
	return dirs
}

// entriesOf returns the names of the configuration files in a directory, sorted.
func entriesOf(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if (ext == ".yaml" || ext == ".yml") && !strings.HasPrefix(e.Name(), ".") && e.Type() != fs.ModeDir {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// judge tells what files of folders say that they may not, and which folders are not as they should
// be. The first file is a main one, and so are those beside it.
func judge(all []*fragment) (faults findings) {
	main := filepath.Dir(all[0].name)
	may := map[string][]at[string]{} // by folder
	for _, f := range all {
		if filepath.Dir(f.name) != main {
			continue
		}
		found := foldersOf(File{f.name, f.head})
		for i, d := range f.doc.includes {
			if !d.path.ok {
				continue
			}
			dir := folder(f.name, d.path.value)
			switch {
			case dir == main:
				faults.add(d.path.spot, "%q is the folder of the main files; expected another one", d.path.value)
			case may[dir] != nil:
				faults.add(d.path.spot, "the folder %q is already included; expected it once", d.path.value)
			case i >= len(found) || found[i] != dir:
				faults.add(d.spot, "the folder is not seen here; expected include: at the beginning of a line, with block or flow lists of {path, may} after it, once in the file")
			}
			may[dir] = append(d.may, at[string]{})
		}
	}
	if len(may) == 0 {
		return faults // all files are equal
	}
	for _, f := range all {
		dir := filepath.Dir(f.name)
		if dir == main {
			continue
		}
		for key, s := range f.doc.keys {
			if !slices.ContainsFunc(may[dir], func(m at[string]) bool { return m.ok && m.value == key }) {
				var list []string
				for _, m := range may[dir] {
					if m.ok {
						list = append(list, m.value)
					}
				}
				faults.add(s, "files of this folder may not have this section; include gives them: %s", strings.Join(list, ", "))
			}
		}
	}
	return faults
}
