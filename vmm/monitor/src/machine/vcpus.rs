//! The vCPU threads.

use std::sync::Arc;
use std::thread::JoinHandle;

use kvm_bindings::CpuId;

use super::build::Restart;
use super::control::{Control, Next, Told};
use super::kick::Kickable;
use super::{ExitReason, MachineError};
use crate::kvm::cpuid::{self, Timing, Topology};
use crate::kvm::vcpu::{Buses, Exit, Vcpu};
use crate::kvm::{KvmError, Vm};

/// Types of KVM_EXIT_SYSTEM_EVENT (api.rst).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;
const SYSTEM_EVENT_CRASH: u32 = 3;

/// Stack of a vCPU thread, which calls device models but recurses nowhere.
const STACK_BYTES: usize = 256 << 10;

/// What every vCPU thread needs.
pub struct Shared<B> {
    pub vm: Vm,
    pub supported: CpuId,
    pub topology: Topology,
    pub tsc_deadline: bool,
    pub control: Arc<Control>,
    /// Handed over when the devices are ready; see [`Late`].
    pub late: std::sync::OnceLock<Late<B>>,
}

/// What is not there yet when the vCPU threads start: they make their vCPUs while the devices are built and the kernel is
/// loaded.
pub struct Late<B> {
    pub buses: B,
    pub restart: Restart,
}

/// Starts the thread of vCPU `index`. It makes the vCPU, then stands still.
///
/// # Errors
/// The host refused a thread.
pub fn spawn<B: Buses + Send + Sync + 'static>(
    shared: &Arc<Shared<B>>,
    index: u8,
) -> Result<JoinHandle<()>, MachineError> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name(format!("vcpu{index}"))
        .stack_size(STACK_BYTES)
        .spawn(move || match make(&shared, index) {
            Ok(vcpu) => run(&shared, vcpu, index),
            Err(error) => shared.control.not_ready(error),
        })
        .map_err(MachineError::Thread)
}

fn make<B>(shared: &Shared<B>, index: u8) -> Result<Vcpu, KvmError> {
    let vcpu = Vcpu::new(&shared.vm, index)?;
    let timing = Timing {
        tsc_khz: vcpu.tsc_khz(),
        tsc_deadline: shared.tsc_deadline,
    };
    let cpuid = cpuid::for_vcpu(&shared.supported, shared.topology, timing, index);
    vcpu.prepare(&cpuid)?;
    Ok(vcpu)
}

fn run<B: Buses>(shared: &Shared<B>, mut vcpu: Vcpu, index: u8) {
    let control = &shared.control;
    let flag = vcpu.immediate_exit_flag();
    let kickable = control.kicks().register(flag);
    let mut told = Told::default();
    loop {
        match control.next(index, &mut told) {
            Next::End => return,
            Next::Restart => {
                restart(shared);
                continue;
            }
            Next::Reset => {
                if let Err(error) = vcpu.reset() {
                    control.end(ExitReason::Failed(error.to_string()));
                }
                continue;
            }
            Next::Start(entry) => {
                if let Err(error) = vcpu.set_entry(entry) {
                    control.end(ExitReason::Failed(error.to_string()));
                    continue;
                }
            }
            Next::Run => {}
        }
        let Some(late) = shared.late.get() else {
            control.end(ExitReason::Failed(
                "a vCPU was started before its devices".into(),
            ));
            continue;
        };
        run_guest(control, &mut vcpu, &kickable, &late.buses);
    }
}

/// Runs the guest until something else is asked of the vCPU.
fn run_guest(control: &Control, vcpu: &mut Vcpu, kickable: &Kickable<'_>, buses: &impl Buses) {
    kickable.clear();
    while !control.attention() {
        match vcpu.run(buses) {
            Exit::Handled => {}
            Exit::Interrupted => kickable.clear(),
            Exit::Shutdown => control.end(ExitReason::TripleFault),
            Exit::SystemEvent(SYSTEM_EVENT_SHUTDOWN) => control.end(ExitReason::PowerOff),
            Exit::SystemEvent(SYSTEM_EVENT_RESET) => control.reset(),
            Exit::SystemEvent(SYSTEM_EVENT_CRASH) => control.end(ExitReason::Panic),
            Exit::SystemEvent(kind) => {
                control.end(ExitReason::Failed(format!(
                    "unknown system event {kind} from KVM"
                )));
            }
            Exit::Failed(text) => control.end(ExitReason::Failed(text)),
        }
    }
    // The last port or memory access is completed in the next KVM_RUN only (api.rst, KVM_EXIT_IO): without it the vCPU's
    // registers would be those of before.
    kickable.set();
    let _ = vcpu.run(buses);
    kickable.clear();
}

fn restart<B>(shared: &Shared<B>) {
    let restarted = match shared.late.get() {
        Some(late) => late.restart.run().map_err(|error| error.to_string()),
        None => Err("the devices are not there".to_owned()),
    };
    match restarted {
        Ok(entry) => {
            shared.control.set_start(entry);
            shared.control.restarted();
        }
        Err(text) => shared.control.end(ExitReason::Failed(format!(
            "the machine cannot restart: {text}"
        ))),
    }
}
