// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// However a secret, or what it is part of, is printed, logged, compared or encoded, its text is not
// there.
func TestSecretStaysSecret(t *testing.T) {
	const password = "correct-horse-battery"
	path := filepath.Join(t.TempDir(), "bgp.key")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		os.Remove(path)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write(password+"\n", 0o600)
	s, err := ReadSecret(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(s.Reveal()) != password {
		t.Errorf("revealed: %q", s.Reveal())
	}
	type neighbor struct {
		Address  string
		Password Secret
		Ref      *Secret
		hidden   Secret // which no method is called for
	}
	n := neighbor{"198.51.100.1", s, &s, s}
	all := []any{s, &s, n, &n, []neighbor{n}, map[string]Secret{"a": s}, map[Secret]string{s: "a"}, []any{s, n}, fmt.Errorf("neighbor %v: %w", n, fmt.Errorf("%+v %#v", s, n))}
	var out bytes.Buffer
	for _, v := range all {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%t", "% x"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		json.NewEncoder(&out).Encode(v)
		if b, err := yaml.Marshal(v); err == nil {
			out.Write(b)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
	}
	gob.NewEncoder(&out).Encode(neighbor{Password: s})
	write("", 0o600)
	_, empty := ReadSecret(path)
	write(password, 0o644)
	_, open := ReadSecret(path)
	write(strings.Repeat(password, 1000), 0o600)
	_, long := ReadSecret(path)
	_, folder := ReadSecret(filepath.Dir(path))
	_, none := ReadSecret(path + "x")
	for name, err := range map[string]error{"an empty file": empty, "a file for anybody": open, "a long file": long, "a folder": folder, "no file": none} {
		if err == nil {
			t.Errorf("%s is a secret", name)
		}
		fmt.Fprintln(&out, err)
	}
	text := out.String()
	for _, form := range []string{password, hex.EncodeToString([]byte(password)), strings.ToUpper(hex.EncodeToString([]byte(password))), base64.StdEncoding.EncodeToString([]byte(password)),
		strings.Trim(fmt.Sprint([]byte(password)), "[]"), strings.Trim(fmt.Sprintf("% x", password), "")} {
		if i := strings.Index(text, form); i >= 0 {
			t.Errorf("the secret is there: %s", text[max(0, i-200):i+len(form)])
		}
	}
	if strings.Count(text, "<secret>") < len(all) {
		t.Errorf("it says <secret> %d times only", strings.Count(text, "<secret>"))
	}

	// A configuration is compared as ever.
	write(password+"\r\n", 0o640)
	same, err := ReadSecret(path)
	if err != nil || same != s {
		t.Errorf("the same secret differs: %v", err)
	}
	write(password+"2", 0o600)
	if other, err := ReadSecret(path); err != nil || other == s {
		t.Errorf("another secret is the same: %v", err)
	}
	if (Secret{}).Reveal() != nil {
		t.Error("no secret has a text")
	}
}
