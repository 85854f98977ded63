# Everything that a person or CI runs. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export CARGO_TERM_COLOR ?= always
CONFORMANCE_DIR ?= $(abspath ../shared/conformance)
export CONFORMANCE_DIR

# Debian packages, by what needs them.
TEST_PACKAGES := iproute2 nftables iptables ipset conntrack strace util-linux xz-utils
VM_PACKAGES := qemu-system-x86 python3
CLUSTER_PACKAGES := golang-go rsync jq dpkg-dev openssl
BENCH_PACKAGES := iproute2 nftables ipset iptables
CNI_BENCH_PACKAGES := iproute2 iptables containernetworking-plugins time

# Tests that need root or the public suites. Always with the same packages and features, so that each crate is
# compiled once for all of them.
PRIVILEGED := --workspace --features cni-bridge-agent/netns,cni-bridge/netns,cni-bridge/conformance,common-informer/conformance,kernel-netlink/netns,kernel-nft/netns,npc-firewall/netns,npc-firewall/conformance,svc-proxy-ipvs/conformance
# What has an image, metrics and a part in the chart. COMPONENT= chooses one.
COMPONENTS := npc-firewall svc-proxy-ipvs cni-bridge-agent lb-ipam
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
FIREWALL := $(TARGET)/debug/npc-firewall
# The CNI plugin is shipped linked with musl, which starts in half the time.
PLUGIN_TARGET := $(shell uname -m)-unknown-linux-musl

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  %-28s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: need-cargo
need-cargo:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or later, e.g. with https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || $(MAKE) --no-print-directory PACKAGES="gcc libc6-dev" packages

.PHONY: packages
packages: # Installs $(PACKAGES), those that are missing
	@missing=$$(for p in $(PACKAGES); do dpkg-query -Wf '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing" $$missing; \
	  apt-get install -y -qq --no-install-recommends $$missing >/dev/null 2>&1 || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }; \
	fi

.PHONY: build
build: need-cargo ## Release binaries in target/release
	cargo build --release --bins

.PHONY: demo
demo: need-cargo ## Watch policies being enforced between pods made of namespaces (KEEP=1 leaves it up)
	@$(MAKE) --no-print-directory PACKAGES="$(TEST_PACKAGES)" packages
	cargo build --release -p npc-firewall -p e2e
	KEEP=$(KEEP) "$${CARGO_TARGET_DIR:-target}/release/demo"

.PHONY: test
test: test-unit test-netns test-vm ## All tests that run on one machine

.PHONY: test-unit
test-unit: need-cargo ## Golden cases, properties, replay; needs no privileges
	cargo test --workspace --exclude test-netns --exclude e2e

.PHONY: test-netns
test-netns: need-cargo ## Real nftables and real packets, in namespaces; needs root
	@$(MAKE) --no-print-directory PACKAGES="$(TEST_PACKAGES)" packages
	NPC_FIREWALL="$(FIREWALL)" cargo test $(PRIVILEGED) --lib --test netns --test namespace --test outcomes --test topology --test demo

.PHONY: test-vm
test-vm: need-cargo ## The same on Linux 6.1 in QEMU, emulated if there is no KVM (VM_ALL=1: all of it); see e2e/vm
	@$(MAKE) --no-print-directory PACKAGES="$(VM_PACKAGES)" packages
	VM_CARGO_FLAGS="$(PRIVILEGED)" e2e/vm/run

.PHONY: test-conformance
test-conformance: need-cargo ## The public suites of ../shared/conformance (CONFORMANCE_ALL=1: every case as packets)
	@$(MAKE) --no-print-directory PACKAGES="$(TEST_PACKAGES)" packages
	cargo test $(PRIVILEGED) --test conformance_oracle --test conformance_netns --test conformance_endpoints --test conformance_services --test wire --test host_local --test replay

.PHONY: test-containerd
test-containerd: need-cargo ## Containers of Debian's containerd (29 MB to download) whose network is cni-bridge's; needs root
	@$(MAKE) --no-print-directory PACKAGES="$(TEST_PACKAGES)" packages
	cargo build -p cni-bridge
	CNI_BRIDGE="$(TARGET)/debug/cni-bridge" e2e/containerd/run

.PHONY: fuzz-smoke
fuzz-smoke: need-cargo ## Random and damaged input, far more of it than in the tests
	PROPTEST_CASES=$${PROPTEST_CASES:-20000} cargo test -p kernel-nft -p kernel-netlink -p common-informer --lib -- fuzz any_json read_as_whole

.PHONY: test-properties
test-properties: need-cargo ## Random clusters and histories, more of them than in the tests, others each time
	PROPTEST_CASES=$${PROPTEST_CASES:-2000} cargo test --release $(PRIVILEGED) --test props

.PHONY: test-apiserver
test-apiserver: need-cargo ## Against kube-apiserver and etcd: of $KUBEBUILDER_ASSETS, or built from Debian's sources
	@[ -n "$${KUBEBUILDER_ASSETS:-}" ] || $(MAKE) --no-print-directory cluster-programs
	KUBEBUILDER_ASSETS="$${KUBEBUILDER_ASSETS:-$(TARGET)/cluster/bin}" cargo test -p common-informer --features apiserver-tests --test apiserver

.PHONY: cluster-programs
cluster-programs: # Kubernetes' own; 20 minutes, once
	@$(MAKE) --no-print-directory PACKAGES="$(CLUSTER_PACKAGES)" packages
	e2e/cluster/build

.PHONY: test-cluster
test-cluster: cluster-programs image ## A node with Kubernetes' own programs and containerd that runs the manifests as they are; needs root
	@$(MAKE) --no-print-directory PACKAGES="$(TEST_PACKAGES)" packages
	e2e/cluster/run

.PHONY: bench-firewall-control
bench-firewall-control: need-cargo ## What a change of objects costs: CPU, time to commit, memory; needs root
	cargo bench -p npc-firewall --bench control

.PHONY: bench-firewall-data
bench-firewall-data: need-cargo ## What a packet costs, side by side with kube-router's layouts; needs root
	@$(MAKE) --no-print-directory PACKAGES="$(BENCH_PACKAGES)" packages
	cargo bench -p npc-firewall --bench data

.PHONY: bench-firewall-instructions
bench-firewall-instructions: need-cargo ## What a packet costs in instructions, on Linux 6.1 in QEMU: what noise hides
	@$(MAKE) --no-print-directory PACKAGES="$(VM_PACKAGES)" packages
	VM_ACCEL=icount VM_MEMORY=3G e2e/vm/run bench-firewall-data -- --ours

.PHONY: bench-cni
bench-cni: need-cargo ## What attaching a pod takes, side by side with the plugins of containernetworking; needs root
	@$(MAKE) --no-print-directory PACKAGES="$(CNI_BENCH_PACKAGES)" packages
	deploy/need-target $(PLUGIN_TARGET)
	cargo build --release -p cni-bridge --bin cni-bridge --target $(PLUGIN_TARGET)
	CNI_BRIDGE="$(TARGET)/$(PLUGIN_TARGET)/release/cni-bridge" cargo bench -p cni-bridge --bench cni

.PHONY: bench-services
bench-services: need-cargo ## First sync, changes, connections, memory by the number of Services, on Linux 6.1 in QEMU
	@$(MAKE) --no-print-directory PACKAGES="$(VM_PACKAGES)" packages
	e2e/vm/run bench-services

.PHONY: bench-service-connections
bench-service-connections: need-cargo ## What a connection costs at 10 and at 20,000 Services, in instructions
	@$(MAKE) --no-print-directory PACKAGES="$(VM_PACKAGES)" packages
	VM_ACCEL=icount VM_MEMORY=3G VM_TIMEOUT=6000 e2e/vm/run bench-services -- --connections 20000

.PHONY: chart-check
chart-check: ## The chart, its objects, and the manifests made from it
	deploy/check-chart

.PHONY: check-metrics
check-metrics: need-cargo ## Prometheus scrapes each binary (BINARIES=DIR has them built); dashboard and alerts against what it says; needs root
	@for component in $(or $(COMPONENT),$(if $(BINARY),npc-firewall),$(COMPONENTS)); do \
	  BINARIES=$(BINARIES) deploy/check-metrics $$component $(BINARY); done

.PHONY: image
image: ## The container images, with buildah; BUILD_BASE=local does without a registry; needs root
	@for component in $(or $(COMPONENT),$(COMPONENTS)); do deploy/build-image $$component; done

.PHONY: check-image
check-image: ## The built images run as the chart runs them; needs root
	@for component in $(or $(COMPONENT),$(COMPONENTS)); do deploy/check-image $$component; done

.PHONY: lint
lint: need-cargo ## Formatting and clippy; warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings

# Not part of `make ci`: on a fresh machine cargo-deny takes minutes to build, and `bans` and `sources` change only
# with Cargo.lock.
CARGO_DENY := 0.20.2
.PHONY: deny
deny: need-cargo ## Licences, versions and sources of everything we depend on, by deny.toml; builds cargo-deny if it is missing
	@[ "$$(cargo deny --version 2>/dev/null)" = "cargo-deny $(CARGO_DENY)" ] || cargo install --locked --version $(CARGO_DENY) cargo-deny
	cargo deny --all-features --locked check bans licenses sources

# In CI, what is tried at random follows from the commit: the same commit tries the same again, another one other
# things. `make test` and `make test-properties` try others each time.
COMMIT_NUMBER := $(shell commit=$$(git rev-parse HEAD 2>/dev/null) && echo $$((0x$${commit:0:15})))
ifneq ($(COMMIT_NUMBER),)
ci: export PROPTEST_RNG_SEED ?= $(COMMIT_NUMBER)
ci: export CONFORMANCE_SEED ?= $(COMMIT_NUMBER)
endif

.PHONY: ci
ci: lint test chart-check ## What .ci/run runs
	@$(MAKE) --no-print-directory check-metrics BINARIES="$(dir $(FIREWALL))"
	@if [ -d "$(CONFORMANCE_DIR)" ]; then $(MAKE) --no-print-directory test-conformance; \
	else echo "no $(CONFORMANCE_DIR): the conformance suites are not part of this run"; fi

.PHONY: clean
clean: ## Remove build output
	cargo clean
