# The two commands of the README are `make demo` and `make test`. Both work on a fresh Debian machine: they install
# the packages below (with apt, through sudo where needed), build, and run.

# What building, the emulated host and the images need.
PACKAGES := build-essential ca-certificates qemu-system-x86 seabios busybox-static mmdebstrap erofs-utils e2fsprogs \
            iproute2 nftables uidmap xz-utils zstd
# What building a guest kernel needs besides.
KERNEL_PACKAGES := flex bison bc libelf-dev libssl-dev kmod

TARGET := target/x86_64-unknown-linux-gnu
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: all build payloads packages demo test soak lint clean

all: build

build:
	cargo build --release --locked --bins --workspace

# dpkg-query is asked first: on a machine that has everything this takes milliseconds and no network.
packages:
	@missing=$$(for p in $(PACKAGES) $(KERNEL_PACKAGES); do \
	    dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	    echo "installing: $$missing"; \
	    $(SUDO) apt-get update -q=2 && \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q=2 -y --no-install-recommends $$missing; \
	fi

# The bare-metal test guest; its folder has link flags of its own.
payloads:
	cd tests/payloads && cargo build --release --locked

demo: packages build
	$(TARGET)/release/fief demo

test: packages build payloads
	tests/run

# What takes too long for every change; docs/testing.md lists it.
soak: packages build
	tests/run soak

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
# The rigs' tests are not among all targets: they run by name.
	cargo clippy --locked -p fief-vmm -p fief-images -p fief-tests --test '*' -- -D warnings

clean:
	cargo clean
