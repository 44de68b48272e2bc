//! Bare-metal payloads on this machine's /dev/kvm: what the guest finds at its entry, its ways out, doorbells,
//! interrupts, several vCPUs. Run as a rig of its own (`cargo test -p fief-vmm --test kvm`); without a usable /dev/kvm
//! every test fails and says why.

#[path = "kvm/machine.rs"]
mod machine;
#[path = "kvm/payload.rs"]
mod payload;
#[path = "kvm/tap.rs"]
mod tap;
#[path = "kvm/vcpu.rs"]
mod vcpu;
