//! A fault of the emulator that counts instructions, worked around.
//!
//! QEMU's VMRUN delivers an interrupt that the hypervisor injects (AMD64 manual, volume 2, 15.20) and leaves its number where
//! QEMU keeps an exception that is to be delivered yet (`exception_index`; 7.2, and still in 2025). When QEMU's clock then ends
//! its loop before the guest next leaves for KVM, it delivers that number again, also while the guest's interrupts are off: a
//! guest that is inside the handler waits for its own lock for ever, loses a connection, or crashes. An interrupt of the
//! hypervisor's own that is pending at VMRUN makes the guest leave at once, which clears the number. So each injection
//! gets one: perf's wake-up for a record of a probe at KVM's entry is an interrupt of the processor to itself.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use perf_event_open_sys::bindings::{PERF_TYPE_TRACEPOINT, perf_event_attr};
use perf_event_open_sys::{ioctls, perf_event_open};

use crate::error::{Error, Result, failed, on, other};
use crate::tracing;

const PROBE: &str = "fief_bench";
/// The function runs with interrupts off, right before the guest.
const DEFINITION: &str = "p:fief_bench svm_vcpu_run injected=vcpu->arch.interrupt.injected:u8";
/// One page for perf's own, and one for records, which are overwritten: nobody reads them.
const MAPPED: usize = 2 << 12;

/// As long as this is there, interrupts that KVM injects on this machine's only processor are delivered once.
#[derive(Debug)]
pub struct Settled {
    event: Option<OwnedFd>,
    /// Address of the mapping.
    records: Option<std::ptr::NonNull<libc::c_void>>,
}

impl Settled {
    /// # Errors
    /// The kernel has no KVM for AMD's processors, or no probes with arguments by name (Linux 6.6).
    pub fn new() -> Result<Self> {
        let mut made = Self {
            event: None,
            records: None,
        };
        let tracing = Path::new(tracing::TRACER);
        tracing::make_ready()?;
        // Of one that was killed.
        remove();
        let file = tracing.join("kprobe_events");
        append(&file, DEFINITION)?;
        let id = file.with_file_name(format!("events/kprobes/{PROBE}/id"));
        let text = fs::read_to_string(&id).map_err(on("read", &id))?;
        let mut attributes = perf_event_attr {
            size: u32::try_from(size_of::<perf_event_attr>()).map_err(other)?,
            type_: PERF_TYPE_TRACEPOINT,
            config: text.trim().parse().map_err(other)?,
            ..Default::default()
        };
        // Each is a record, and each record a wake-up.
        attributes.__bindgen_anon_1.sample_period = 1;
        attributes.__bindgen_anon_2.wakeup_events = 1;
        // SAFETY: the kernel reads the attributes, whose size they tell; all processes, on processor 0.
        let event = unsafe { perf_event_open(&raw mut attributes, -1, 0, -1, 0) };
        if event < 0 {
            return Err(failed("watch KVM's entries")(
                std::io::Error::last_os_error(),
            ));
        }
        // SAFETY: the kernel has just made it, and nobody else has it.
        let event = unsafe { OwnedFd::from_raw_fd(event) };
        let filter = CString::new("injected == 1").map_err(other)?;
        // SAFETY: the kernel reads the text, up to its zero.
        if unsafe { ioctls::SET_FILTER(event.as_raw_fd(), filter.as_ptr().cast_mut()) } < 0 {
            return Err(failed("choose KVM's entries")(
                std::io::Error::last_os_error(),
            ));
        }
        let length = std::num::NonZeroUsize::new(MAPPED);
        let length = length.ok_or_else(|| Error::Other("nothing to map".to_owned()))?;
        // SAFETY: a new mapping, which nobody reads.
        let records = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                event.as_fd(),
                0,
            )
        };
        made.records = Some(records.map_err(|errno| failed("map records")(errno.into()))?);
        made.event = Some(event);
        Ok(made)
    }
}

impl Drop for Settled {
    fn drop(&mut self) {
        if let Some(records) = self.records {
            // SAFETY: mapped above, with this length, and nobody has a reference into it.
            let _ = unsafe { munmap(records, MAPPED) };
        }
        // The probe is in use as long as the event is there.
        self.event = None;
        remove();
    }
}

fn append(file: &Path, line: &str) -> Result<()> {
    let opened = fs::OpenOptions::new().append(true).open(file);
    let written = opened.and_then(|mut file| file.write_all(line.as_bytes()));
    written.map_err(on("write to", file))
}

fn remove() {
    let file: PathBuf = Path::new(tracing::TRACER).join("kprobe_events");
    let _ = append(&file, &format!("-:{PROBE}"));
}
