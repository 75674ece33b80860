// SPDX-License-Identifier: Apache-2.0

// Package bench measures what a packet costs: the data plane's own worker between a generator of
// packets and a sink, without devices and with them.
package bench

import (
	"time"

	"github.com/spf13/cobra"

	"weir/appliance/command"
	"weir/appliance/dataplane"
)

// Command is weir-dataplane bench.
func Command() *cobra.Command {
	var b bench
	var frames []string
	var all bool
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure what a packet costs on this machine",
		Long: "Bench sends packets in real packet buffers through the real pipeline, without a device, and reports what each packet costs.\n" +
			"The cost covers everything between a receive call and a transmit call; making and freeing packets is measured separately.\n" +
			"Sessions come in random order. Cycles are those of the time stamp counter, which counts at the nominal frequency. Frame\n" +
			"lengths include the CRC. Bench needs no privileges.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all {
				for flag, v := range map[string]string{"sessions": "1000,65536,1048576,10000000", "burst": "8,32,64", "workers": "1,2", "time": "50ms"} {
					if !cmd.Flags().Changed(flag) {
						cmd.Flags().Set(flag, v)
					}
				}
				if !cmd.Flags().Changed("frame") {
					frames = []string{"64", "imix", "1500"}
				}
			}
			if err := b.parse(frames); err != nil {
				return err
			}
			if err := b.measureAll(cmd.OutOrStdout(), cmd.ErrOrStderr()); err != nil {
				return command.Failed(err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&b.json, "json", false, "print a JSON array with one object per measurement")
	f.StringVar(&b.out, "out", "", "write what --json prints to `FILE`, and print the table")
	f.StringVar(&b.profile, "profile", "", "write a CPU profile to `FILE`, for go tool pprof and go build -pgo")
	f.StringVar(&b.match, "scenario", "", "run only scenarios whose names match `REGEXP`")
	f.IntSliceVar(&b.sessions, "sessions", []int{1000, 65536, 1 << 20}, "numbers of sessions")
	f.IntSliceVar(&b.burst, "burst", []int{dataplane.BurstSize}, "packets per burst")
	f.StringSliceVar(&frames, "frame", []string{"64"}, "frame lengths; imix: 7 of 64, 4 of 594, 1 of 1518")
	f.IntSliceVar(&b.workers, "workers", []int{1}, "workers, each on its own core")
	f.DurationVar(&b.time, "time", 200*time.Millisecond, "duration of each measurement")
	f.IntVar(&b.runs, "runs", 1, "measure everything so many times, each time with a new gateway; prints the median, the lowest and the highest")
	f.BoolVar(&b.withDevices, "devices", false, "also measure over net_ring and net_memif, with a generator on another core, and compare with dpdk-testpmd")
	f.BoolVar(&all, "all", false, "all sizes: 10,000,000 sessions, bursts of 8 and 64, longer frames, two workers; takes minutes")
	return cmd
}
