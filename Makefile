# SPDX-License-Identifier: Apache-2.0

# `make` alone lists the words. Every word installs the Debian packages it needs and does not find.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# The Debian packages, in this one place.
BUILD_PACKAGES := gcc libc6-dev pkg-config libdpdk-dev
TEST_PACKAGES  := $(BUILD_PACKAGES) shellcheck systemd iproute2 ethtool tcpdump iperf3 tshark nftables
BENCH_PACKAGES := $(BUILD_PACKAGES) dpdk-dev
IMAGE_PACKAGES := buildah debootstrap

# sudo hides a Go that stands where Go's own installation puts it.
GO := $(shell command -v go || echo /usr/local/go/bin/go)

# What may be set on the command line.
DURATION ?= 0
FUZZTIME ?= 10s
RUNS     ?= 5
IMAGE    ?= weir:latest
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# Position-independent, with a relocation table that is read-only from the start on. The C part's own flags are in dpdk/eal.go.
HARDENED := -trimpath -buildmode=pie
LINK     := -bindnow
LINK_C   := -linkmode=external -extldflags=-Wl,-z,relro,-z,now,-z,noexecstack

PURE := ./config/... ./metrics/... ./pipeline/...

.PHONY: help
help: ## list these words
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: packages-build ## build bin/weir and, with libdpdk, bin/weir-dataplane
	CGO_ENABLED=0 $(GO) build $(HARDENED) -ldflags "-X main.version=$(VERSION) $(LINK)" -o bin/weir ./appliance
	$(GO) build $(HARDENED) -ldflags "-X main.version=$(VERSION) $(LINK_C)" -o bin/weir-dataplane ./appliance/weir-dataplane
	@deploy/project/make/hardened bin/weir bin/weir-dataplane

.PHONY: run
run: need-root build ## play: two tenants, an Internet and a weir in namespaces (DURATION=10s: end by itself)
	$(GO) build -o bin/playground ./deploy/playground
	@exec bin/playground -duration $(DURATION)

.PHONY: replay
replay: build ## replay captured packets through the playground's configuration; needs no privileges
	deploy/project/make/replay "$(GO)"

.PHONY: test
test: need-root packages-test build lint ## everything: lint, tests, races, live tests, playground, deployment
	@# One package at a time: the live tests share the cores with workers that poll.
	$(GO) test -count=1 -p 1 -timeout 30m $$($(GO) list ./... | grep -vxFf <($(GO) list $(PURE)))
	CGO_ENABLED=0 $(GO) test -count=1 -run '^$$' $(PURE)
	@# Side by side: each keeps one core busy. Short, since the race detector sees nothing in the long loops of single goroutines.
	$(GO) test -count=1 -race -short -timeout 30m $(PURE) & race=$$!; plain=0; \
	$(GO) test -count=1 -timeout 30m $(PURE) || plain=1; wait $$race && exit $$plain
	$(MAKE) --no-print-directory replay
	$(MAKE) --no-print-directory run DURATION=5s

.PHONY: lint
lint: packages-test ## gofmt, vet, staticcheck, layering, shell scripts, alert rules, units
	deploy/project/make/lint "$(GO)"

.PHONY: conformance
conformance: need-root packages-test ## write docs/conformance.md from the outcome of the tests that each requirement names
	$(GO) run ./deploy/project/conformance

.PHONY: fuzz
fuzz: packages-build ## run every fuzz target for FUZZTIME (10s)
	deploy/project/make/fuzz "$(GO)" $(FUZZTIME)

.PHONY: fuzz-turn
fuzz-turn: packages-build ## run one fuzz target for a minute: another each day
	deploy/project/make/fuzz "$(GO)" 1m "$$(($$(date +%s) / 86400))"

.PHONY: licences
licences: ## print the licence texts of all that the programs contain
	@deploy/project/make/licences "$(GO)"

.PHONY: sbom
sbom: ## write bin/sbom.json: what weir is made of, as CycloneDX
	$(GO) run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.9.0 mod -json -licenses -output bin/sbom.json .

.PHONY: bench
bench: packages-bench build ## measure on a quiet machine, beside dpdk-testpmd (RUNS=5); results in bin/bench-*.json
	bin/weir-dataplane bench --devices --runs $(RUNS) --time 100ms --out bin/bench-1.json
	bin/weir-dataplane bench --scenario 'established/(mixed|snat/v4/out)|handoff' --sessions 65536,1048576 --burst 8,32,64 --frame 64,imix,1500 --workers 1,2 --runs $(RUNS) --time 50ms --out bin/bench-2.json
	bin/weir-dataplane bench --scenario 'established/(floating|snat)/v4|mixed' --sessions 10000000 --runs $(RUNS) --time 500ms --out bin/bench-3.json
	$(CC) -O2 -o bin/memory deploy/project/bench/memory/memory.c
	bin/memory 1000 65536 1048576 10000000 > bin/bench-4.json

.PHONY: image
image: need-root packages-image ## build and try the container image (IMAGE=weir:latest)
	deploy/project/make/image "$(GO)" $(IMAGE) $(VERSION)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

.PHONY: packages-build packages-test packages-bench packages-image
packages-build:
	@deploy/project/make/packages $(BUILD_PACKAGES)
packages-test:
	@deploy/project/make/packages $(TEST_PACKAGES)
packages-bench:
	@deploy/project/make/packages $(BENCH_PACKAGES)
packages-image:
	@deploy/project/make/packages $(IMAGE_PACKAGES)

.PHONY: need-root
need-root:
	@[[ $$(id -u) = 0 ]] || { echo "make $(MAKECMDGOALS) makes network namespaces or mounts and so needs root; without root, \`make replay\` shows the same gateway on captured packets." >&2; exit 1; }
