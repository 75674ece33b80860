// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"weir/config"
)

// Bounds are what whoever starts the data plane lets control ask for.
type Bounds struct {
	Devices []string // prefixes of devices, PCI addresses in full; empty: any device
	EALArgs []string // for EAL, beside those that the configuration's keys make
}

// ealArgs are the arguments that EAL takes from the command line: none that loads code (-d), names
// a device or a file, or opens something that others reach.
var ealArgs = []*regexp.Regexp{
	regexp.MustCompile(`^--log-level=[a-z0-9_.*:,]+$`),
	regexp.MustCompile(`^--(legacy-mem|match-allocations|single-file-segments)$`),
	regexp.MustCompile(`^--(socket-mem|socket-limit)=[0-9]+(,[0-9]+)*$`),
	regexp.MustCompile(`^--(base-virtaddr=0x[0-9a-f]+|force-max-simd-bitwidth=[0-9]+)$`),
	regexp.MustCompile(`^--vfio-vf-token=[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`),
	regexp.MustCompile(`^-[nr] ?[0-9]{1,2}$`),
}

// check refuses arguments that are not in the list.
func (b *Bounds) check() error {
	for _, arg := range b.EALArgs {
		if !slices.ContainsFunc(ealArgs, func(r *regexp.Regexp) bool { return r.MatchString(arg) }) {
			return fmt.Errorf("--eal-arg %q: it is not accepted; expected one of --log-level=, --legacy-mem, --match-allocations, --single-file-segments, "+
				"--socket-mem=, --socket-limit=, --base-virtaddr=, --force-max-simd-bitwidth=, --vfio-vf-token=, -n and -r, each with its value in one argument", arg)
		}
	}
	return nil
}

// deviceForm is a device as the configuration has it. Control has checked it, if control is what it
// was.
var deviceForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]*(,[!-~]+)?$`)

// allow refuses a device that begins with none of the prefixes.
func (b *Bounds) allow(device string) error {
	if !deviceForm.MatchString(device) {
		return fmt.Errorf("device %q is neither a PCI address nor a virtual device", device)
	}
	if len(b.Devices) == 0 {
		return nil
	}
	_, args, _ := strings.Cut(device, ",")
	whole := config.DeviceName(device) + "," + args
	for _, prefix := range b.Devices {
		if strings.HasPrefix(whole, prefix) {
			return nil
		}
	}
	return fmt.Errorf("device %q is not one that this data plane may open; expected one that begins with %s (weir-dataplane --device)",
		device, strings.Join(b.Devices, " or "))
}

// eal returns EAL's further arguments.
func (b *Bounds) eal(c *config.Dataplane) ([]string, error) {
	args := slices.Clone(b.EALArgs)
	for _, key := range []struct {
		name, value, flag string
		values            []string
	}{
		{"vfio_intr", c.VFIOIntr, "--vfio-intr=", []string{"legacy", "msi", "msix"}},
		{"iova", c.IOVA, "--iova-mode=", []string{"pa", "va"}},
	} {
		switch {
		case key.value == "" || key.value == "auto":
		case slices.Contains(key.values, key.value):
			args = append(args, key.flag+key.value)
		default:
			return nil, fmt.Errorf("dataplane.%s: %q is not accepted", key.name, key.value)
		}
	}
	return args, nil
}
