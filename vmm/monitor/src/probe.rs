//! `--probe`: what this machine's KVM can do, and whether Linux guests run on it at speed.
//!
//! A KVM can be there and still be of no use: a page-table based one (kvm_pvm) runs guest user mode natively but
//! interprets guest kernel mode, a thousand times slower and without some instructions. So the probe runs a few
//! instructions in a guest's kernel mode and takes the time.

mod payload;

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use kvm_ioctls::{Cap, Kvm};
use serde::Serialize;

use crate::kvm::{Host, KVM_DEVICE};
use crate::machine::files::Files;
use crate::server::error::with_causes;
use payload::{Instruction, PayloadError};

/// Guest kernel instructions per second below which Linux is not worth starting. Hardware virtualization reaches some
/// 10^9, a fully emulated host some 10^8, an interpreting KVM some 10^6.
const NATIVE: f64 = 2e7;

/// Time for the whole probe; a KVM that takes longer is not one to run Linux on.
const PATIENCE: Duration = Duration::from_millis(900);

/// Kernel modules that drive a processor's virtualization, one of which is behind /dev/kvm.
const VENDOR_MODULES: [&str; 3] = ["kvm_intel", "kvm_amd", "kvm_pvm"];

/// Capabilities worth knowing about.
const CAPABILITIES: [(&str, Cap); 12] = [
    ("user_memory", Cap::UserMemory),
    ("irqchip", Cap::Irqchip),
    ("irqfd", Cap::Irqfd),
    ("irqfd_resample", Cap::IrqfdResample),
    ("ioeventfd", Cap::Ioeventfd),
    ("signal_msi", Cap::SignalMsi),
    ("immediate_exit", Cap::ImmediateExit),
    ("tsc_deadline_timer", Cap::TscDeadlineTimer),
    ("ext_cpuid", Cap::ExtCpuid),
    ("mp_state", Cap::MpState),
    ("set_tss_addr", Cap::SetTssAddr),
    ("set_identity_map_addr", Cap::SetIdentityMapAddr),
];

/// The answer.
#[derive(Debug, Default, Serialize)]
struct Report {
    api_version: Option<i32>,
    vendor_module: Option<&'static str>,
    max_vcpus: Option<usize>,
    capabilities: serde_json::Map<String, serde_json::Value>,
    kernel_mode: KernelMode,
    verdict: Verdict,
}

/// Guest code at CPL0.
#[derive(Debug, Default, Clone, Serialize)]
struct KernelMode {
    instructions_per_second: Option<u64>,
    /// Instructions that Linux uses and this KVM cannot run.
    missing: Vec<&'static str>,
}

#[derive(Debug, Default, Serialize, PartialEq, Eq)]
struct Verdict {
    linux_guests: bool,
    why: String,
}

/// The answer as JSON. Whatever is wrong stands in its verdict.
pub fn probe() -> String {
    let files = Files::new();
    let report = report(&files, Path::new(KVM_DEVICE));
    // A map with string keys and numbers that are finite: this always succeeds.
    serde_json::to_string_pretty(&report).unwrap_or_default()
}

fn report(files: &Files, device: &Path) -> Report {
    let mut report = Report {
        vendor_module: VENDOR_MODULES
            .into_iter()
            .find(|name| Path::new("/sys/module").join(name).exists()),
        ..Report::default()
    };
    let kvm = match open(files, device) {
        Ok(kvm) => kvm,
        Err(why) => {
            report.verdict.why = why;
            return report;
        }
    };
    report.api_version = Some(kvm.get_api_version());
    report.max_vcpus = Some(kvm.get_max_vcpus());
    for (name, capability) in CAPABILITIES {
        let has = kvm.check_extension(capability);
        report.capabilities.insert(name.to_owned(), has.into());
    }
    let (measured, error) = measure(kvm);
    report.verdict = match error {
        Some(why) => Verdict {
            linux_guests: false,
            why,
        },
        None => judge(&measured, report.vendor_module),
    };
    report.kernel_mode = measured;
    report
}

/// Opens KVM with the checks that a machine makes, so that the reason is the one a machine would give.
fn open(files: &Files, device: &Path) -> Result<Kvm, String> {
    Host::open(files, device).map_err(|error| with_causes(&error))?;
    let file = files.open_device(device).map_err(|e| e.to_string())?;
    Ok(payload::from_file(file))
}

/// Runs the payloads in a thread, which is left alone (and ends with the process) if it takes too long. Gives what was
/// measured by then, and what went wrong.
fn measure(kvm: Kvm) -> (KernelMode, Option<String>) {
    let (sender, results) = mpsc::channel();
    let work = move || {
        // Sending fails only when the other side has given up.
        let _ = sender.send(Step::Speed(payload::speed(&kvm)));
        for instruction in Instruction::ALL {
            let runs = payload::runs(&kvm, instruction);
            let _ = sender.send(Step::Instruction(instruction, runs));
        }
    };
    let mut measured = KernelMode::default();
    let spawned = std::thread::Builder::new().spawn(work);
    if let Err(error) = spawned {
        return (measured, Some(format!("cannot start a thread: {error}")));
    }
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        match results.recv_timeout(left) {
            Ok(Step::Speed(Ok(speed))) => measured.instructions_per_second = Some(whole(speed)),
            Ok(Step::Instruction(_, Ok(true))) => {}
            Ok(Step::Instruction(instruction, Ok(false))) => {
                measured.missing.push(instruction.name());
            }
            Ok(Step::Speed(Err(error)) | Step::Instruction(_, Err(error))) => {
                return (measured, Some(with_causes(&error)));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return (measured, None),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let why = format!(
                    "a guest of a few instructions did not finish within {} ms on this KVM",
                    PATIENCE.as_millis()
                );
                return (measured, Some(why));
            }
        }
    }
}

enum Step {
    Speed(Result<f64, PayloadError>),
    Instruction(Instruction, Result<bool, PayloadError>),
}

fn judge(measured: &KernelMode, vendor_module: Option<&str>) -> Verdict {
    let speed = measured.instructions_per_second.unwrap_or_default();
    let kvm = vendor_module.map_or("this machine's KVM".to_owned(), |name| {
        format!("this machine's KVM ({name})")
    });
    let millions = as_f64(speed) / 1e6;
    let slow = as_f64(speed) < NATIVE;
    let missing = measured.missing.join(", ");
    let why = match (slow, measured.missing.is_empty()) {
        (false, true) => {
            format!("{kvm} runs guest kernels at {millions:.0} million instructions a second")
        }
        (false, false) => {
            format!("{kvm} cannot run these instructions in guest kernels: {missing}")
        }
        (true, true) => {
            format!("{kvm} runs guest kernels at only {millions:.1} million instructions a second")
        }
        (true, false) => format!(
            "{kvm} interprets guest kernels, at {millions:.1} million instructions a second, and cannot run {missing}"
        ),
    };
    Verdict {
        linux_guests: !slow && measured.missing.is_empty(),
        why,
    }
}

/// A number of instructions, exact enough to be read.
fn as_f64(number: u64) -> f64 {
    u32::try_from(number / 1000).map_or(f64::MAX, |thousands| f64::from(thousands) * 1000.0)
}

/// `speed` without its fraction; speeds are positive and far below 2^63.
fn whole(speed: f64) -> u64 {
    let thousands = (speed / 1000.0).clamp(0.0, f64::from(u32::MAX));
    // The clamp makes the conversion exact up to the fraction.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let thousands = thousands as u32;
    u64::from(thousands) * 1000
}

#[cfg(test)]
mod tests;
