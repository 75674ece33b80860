// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"slices"
	"testing"

	"weir/config"
)

// No argument of EAL's that loads code, names a file or opens a door is taken, from anybody.
func TestEALArgs(t *testing.T) {
	for _, arg := range []string{"--log-level=8", "--log-level=lib.eal:debug", "--legacy-mem", "--socket-mem=512,512", "--vfio-vf-token=14d63f20-8445-11ea-8900-1f9ce7d5650d", "-n 4", "-n4"} {
		if err := (&Bounds{EALArgs: []string{arg}}).check(); err != nil {
			t.Error(err)
		}
	}
	for _, arg := range []string{"-d", "evil.so", "-d evil.so", "-devil.so", "--vdev=net_pcap0,rx_pcap=/etc/shadow", "--vdev", "-a", "-a0000:00:00.0", "--file-prefix=x",
		"--huge-dir=/tmp", "--proc-type=secondary", "--trace=.*", "--trace-dir=/etc", "--telemetry", "--create-uio-dev", "--mbuf-pool-ops-name=x", "--log-level=8\n-d", "--iova-mode=pa", "--no-huge", "--", ""} {
		if (&Bounds{EALArgs: []string{"--legacy-mem", arg}}).check() == nil {
			t.Errorf("%q is accepted", arg)
		}
	}
}

// Control opens devices that whoever started the data plane named, and no others.
func TestDevices(t *testing.T) {
	b := Bounds{Devices: []string{"0000:3b:00.", "net_af_packet0,iface=inside,", "net_tap"}}
	for device, good := range map[string]bool{
		"0000:3b:00.0": true, "3b:00.1": true, "0000:3B:00.1,arg=1": true, "0000:3b:01.0": false, "0001:3b:00.0": false,
		"net_af_packet0,iface=inside,framecnt=1": true, "net_af_packet0,iface=inside": false, "net_af_packet0,iface=inside2,": false, "net_af_packet1,iface=inside,": false,
		"net_tap0": true, "net_tap1,iface=x": true, "net_pcap0,tx_pcap=/etc/passwd": false, "vdev:net_tap0": false, "bus=vdev,name=net_tap0": false,
		"net_tap0 -d": false, "net_tap0,x\x00y": false, "": false, "-d": false,
	} {
		if err := b.allow(device); (err == nil) != good {
			t.Errorf("%q: %v", device, err)
		}
	}
	if err := new(Bounds).allow("net_null0"); err != nil {
		t.Errorf("without prefixes: %v", err)
	}
}

// What control says becomes an argument only as one of a list's values.
func TestTypedArgs(t *testing.T) {
	b := Bounds{EALArgs: []string{"--legacy-mem"}}
	args, err := b.eal(&config.Dataplane{VFIOIntr: "msi", IOVA: "va"})
	if err != nil || !slices.Equal(args, []string{"--legacy-mem", "--vfio-intr=msi", "--iova-mode=va"}) {
		t.Errorf("%q, %v", args, err)
	}
	if args, err = b.eal(&config.DefaultConfig.Dataplane); err != nil || len(args) != 1 {
		t.Errorf("%q, %v", args, err)
	}
	for _, c := range []config.Dataplane{{VFIOIntr: "msi -d"}, {IOVA: "x"}} {
		if args, err := b.eal(&c); err == nil {
			t.Errorf("%+v: %q", c, args)
		}
	}
}
