// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// dataplaneProgram is the name of the program that binds DPDK.
const dataplaneProgram = "weir-dataplane"

// DataplaneProgram returns the path of weir-dataplane: in the directory of the running program,
// else in PATH.
func DataplaneProgram() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("%s: the directory of the running program is not known: %w", dataplaneProgram, err)
	}
	beside := filepath.Join(filepath.Dir(self), dataplaneProgram)
	if path, err := exec.LookPath(beside); err == nil {
		return path, nil
	}
	path, err := exec.LookPath(dataplaneProgram)
	if err != nil {
		return "", fmt.Errorf("there is no program %s, and none of this name in PATH: install it beside weir", beside)
	}
	return path, nil
}
