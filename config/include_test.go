// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsnotify/fsnotify"
)

const includingMain = `version: 1
include: [{path: tenants/, may: [vpcs, instances]}]
reload: {max_shrink: 10%}
ports: [{name: in, device: net_tap0, side: inside}]
vpcs: [{name: blue, attach: [{port: in}], subnets: [10.0.0.0/8]}]
`

// A file of a folder says only what the folder may say.
func TestInclude(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "weir.yaml")
	write("weir.yaml", includingMain)
	write("tenants/a.yaml", "version: 1\ninstances: [{vpc: blue, name: a, addresses: [10.0.0.1]}]\n")
	write("tenants/.b.yaml", "no")
	write("tenants/c.txt", "no")
	c := load(t, path)
	if len(c.VPCs) != 1 || len(c.VPCs[0].Instances) != 1 {
		t.Fatalf("%+v", c.VPCs)
	}
	if Digest(path) != DigestOf(ReadFiles(path)) {
		t.Error("the digest is not that of its files")
	}
	was := Digest(path)
	write("tenants/a.yaml", "version: 1\ninstances: [{vpc: blue, name: a, addresses: [10.0.0.2]}]\n")
	if Digest(path) == was {
		t.Error("a change in a folder is none of the digest")
	}

	for _, c := range []struct{ name, file, text, want string }{
		{"the API", "tenants/x.yaml", `api: {listen: ":1"}`, "x.yaml:2: api: files of this folder may not have this section; include gives them: vpcs, instances"},
		{"the guard", "tenants/x.yaml", "reload: {max_shrink: 100%}", "x.yaml:2: reload: files of this folder"},
		{"a pool", "tenants/x.yaml", "pools: [{name: p, ranges: [192.0.2.0/24]}]", "x.yaml:2: pools: files of this folder"},
		{"an empty section", "tenants/x.yaml", "pools: []", "x.yaml:2: pools: files of this folder"},
		{"more for itself", "tenants/x.yaml", "include: [{path: ., may: [pools]}]", "x.yaml:2: include: files of this folder"},
		{"a VPC", "tenants/x.yaml", "vpcs: [{name: green}]", ""},
		{"an unknown section", "weir.yaml", "include: [{path: tenants, may: [api]}]", `include[0].may[0]: "api" is not accepted`},
		{"no sections", "weir.yaml", "include: [{path: tenants}]", "include[0]: has no may; expected one"},
		{"itself", "weir.yaml", "include: [{path: ., may: [vpcs]}]", `"." is the folder of the main files`},
		{"twice", "weir.yaml", "include: [{path: tenants, may: [vpcs]}, {path: ./tenants/, may: [pools]}]", "is already included"},
		{"in JSON", "weir.yaml", `"include": [{"path": "tenants", "may": ["vpcs"]}]`, "the folder is not seen here"},
		{"nowhere", "weir.yaml", "include: [{path: none/, may: [vpcs]}]", "none: cannot be read"},
		{"another indentation", "weir.yaml", "include:\n# c\n- path: tenants\n  may:\n  - instances\nvpcs: [{name: blue, subnets: [10.0.0.0/8]}]", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			write(c.file, "version: 1\n"+c.text+"\n")
			defer write("weir.yaml", includingMain)
			defer os.Remove(filepath.Join(dir, "tenants/x.yaml"))
			_, _, err := Load(path)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, expected %q", err, c.want)
			}
		})
	}

	// The parser that goes on from what it knows notices too.
	p := new(Parser)
	for _, text := range []string{"instances: []", "instances: [{vpc: blue, name: b, addresses: [10.0.0.3]}]", "vpcs: []", "pools: []"} {
		write("tenants/x.yaml", "version: 1\n"+text+"\n")
		files, err := ReadFiles(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err = p.Parse(files); (err == nil) == (text == "pools: []") {
			t.Errorf("%s: %v", text, err)
		}
	}
	os.Remove(filepath.Join(dir, "tenants/x.yaml"))

	// A link out of the folder reads what control may read, which its writers may not.
	write("secret.yaml", "version: 1\nvpcs: [{name: secret-thing}]\n")
	if err := os.Symlink(filepath.Join(dir, "secret.yaml"), filepath.Join(dir, "tenants/y.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(path); err == nil || !strings.Contains(err.Error(), "y.yaml: cannot be read") {
		t.Errorf("a link out of the folder: %v", err)
	}
}

// A change in a folder is a change of the configuration.
func TestWatchInclude(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "weir.yaml")
	if err := os.Mkdir(filepath.Join(dir, "tenants"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(includingMain), 0o600); err != nil {
		t.Fatal(err)
	}
	wanted := watchedBy(t, path)
	if !wanted[dir] || !wanted[filepath.Join(dir, "tenants")] {
		t.Errorf("watched: %v", wanted)
	}
}

// watchedBy returns the directories that are watched for a path.
func watchedBy(t *testing.T, path string) map[string]bool {
	t.Helper()
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	watched := map[string]bool{}
	watcher{path: path}.follow(notify, watched)
	return watched
}
