# SPDX-License-Identifier: Apache-2.0
#
# weir in a container. `make image` builds and tries it, also where no registry can be reached.
#
# To run: --network host, /dev/vfio and /dev/hugepages mounted, capabilities NET_RAW NET_ADMIN IPC_LOCK SYS_NICE, and
# the configuration at /etc/weir/weir.yaml. The host itself is prepared by deploy/host/host-setup.
ARG GO_IMAGE=docker.io/library/golang:1.26-bookworm
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${GO_IMAGE} AS build
RUN apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends gcc libc6-dev libdpdk-dev pkg-config >/dev/null && \
    rm -rf /var/lib/apt/lists/*
ARG GOPROXY
ARG GOSUMDB
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY appliance appliance
COPY config config
COPY dpdk dpdk
COPY metrics metrics
COPY pipeline pipeline
ARG VERSION=dev
COPY deploy/project/make/licences deploy/project/make/hardened /usr/local/lib/
# As the Makefile has them.
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -buildmode=pie -ldflags "-X main.version=${VERSION} -bindnow" -o /out/weir ./appliance && \
    go build -trimpath -buildvcs=false -buildmode=pie \
        -ldflags "-X main.version=${VERSION} -linkmode=external -extldflags=-Wl,-z,relro,-z,now,-z,noexecstack" -o /out/weir-dataplane ./appliance/weir-dataplane && \
    /usr/local/lib/hardened /out/weir /out/weir-dataplane && \
    /usr/local/lib/licences go > /out/THIRD-PARTY

FROM ${BASE_IMAGE}
# DPDK's drivers are loaded at run time, so nothing but their names would bring them in.
RUN apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends librte-meta-bus librte-meta-mempool librte-meta-net >/dev/null && \
    rm -rf /var/lib/apt/lists/*
COPY --from=build /out/weir /out/weir-dataplane /usr/local/bin/
COPY --from=build /out/THIRD-PARTY /usr/share/doc/weir/
COPY LICENSE deploy/host/weir.example.yaml /usr/share/doc/weir/
ENTRYPOINT ["/usr/local/bin/weir"]
CMD ["run", "--config", "/etc/weir/weir.yaml"]
