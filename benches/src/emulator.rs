//! A fault of the emulator that counts instructions, worked around.
//!
//! QEMU's VMRUN delivers an interrupt that the hypervisor injects (AMD64 manual, volume 2, 15.20) and leaves its number where
//! QEMU keeps an exception that is to be delivered yet (`exception_index`; 7.2, and still in 2025). When QEMU's clock then ends
//! its loop before the guest next leaves for KVM, it delivers that number again, also while the guest's interrupts are off: a
//! guest that is inside the handler waits for its own lock for ever, loses a connection, or crashes. An interrupt of the
//! hypervisor's own that is pending at VMRUN makes the guest leave at once, which clears the number. So each injection
//! gets one: perf's wake-up for a record of a probe at KVM's entry is an interrupt of the processor to itself.

use std::ffi::{CStr, c_void};
use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use perf_event_open_sys::bindings::{PERF_TYPE_TRACEPOINT, perf_event_attr};
use perf_event_open_sys::{ioctls, perf_event_open};

use crate::error::{Result, failed, on, other};
use crate::tracing;

const PROBE: &str = "fief_bench";
/// The function runs with interrupts off, right before the guest.
const WATCHED: &str = "svm_vcpu_run injected=vcpu->arch.interrupt.injected:u8";
const CHOSEN: &CStr = c"injected == 1";
/// Bytes: a page for perf's own, and one for records, which are overwritten: nobody reads them.
const MAPPED: NonZeroUsize = NonZeroUsize::new(2 << 12).unwrap();

/// As long as this is there, interrupts that KVM injects on this machine's only processor are delivered once.
#[derive(Debug)]
pub struct Settled {
    /// Address of the mapping, which holds the event as `_event` does.
    records: NonNull<c_void>,
    _event: OwnedFd,
    /// After the event, which uses it.
    _probe: Probe,
}

impl Settled {
    /// # Errors
    /// The kernel has no KVM for AMD's processors, or no probes with arguments by name (Linux 6.6).
    pub fn new() -> Result<Self> {
        let probe = Probe::make()?;
        let mut attributes = perf_event_attr {
            size: u32::try_from(size_of::<perf_event_attr>()).map_err(other)?,
            type_: PERF_TYPE_TRACEPOINT,
            config: probe.id()?,
            ..Default::default()
        };
        // Each is a record, and each record a wake-up.
        attributes.__bindgen_anon_1.sample_period = 1;
        attributes.__bindgen_anon_2.wakeup_events = 1;
        // SAFETY: the kernel reads the attributes, whose size they tell; all processes, on processor 0.
        let event = unsafe { perf_event_open(&raw mut attributes, -1, 0, -1, 0) };
        if event < 0 {
            return Err(failed("watch KVM's entries")(io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just made it, and nobody else has it.
        let event = unsafe { OwnedFd::from_raw_fd(event) };
        // SAFETY: the kernel reads the text, up to its zero.
        if unsafe { ioctls::SET_FILTER(event.as_raw_fd(), CHOSEN.as_ptr().cast_mut()) } < 0 {
            return Err(failed("choose KVM's entries")(io::Error::last_os_error()));
        }
        let (read, shared) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping, which nobody reads.
        let records = unsafe { mmap(None, MAPPED, read, shared, event.as_fd(), 0) };
        Ok(Self {
            records: records.map_err(|errno| failed("map records")(errno.into()))?,
            _event: event,
            _probe: probe,
        })
    }
}

impl Drop for Settled {
    fn drop(&mut self) {
        // SAFETY: mapped above, with this length, and nobody has a reference into it.
        let _ = unsafe { munmap(self.records, MAPPED.get()) };
    }
}

/// A probe of the kernel, as long as this is there.
#[derive(Debug)]
struct Probe;

impl Probe {
    fn make() -> Result<Self> {
        tracing::make_ready()?;
        // Of one that was killed.
        Self::remove();
        append(&format!("p:{PROBE} {WATCHED}"))?;
        Ok(Self)
    }

    /// Its number among the kernel's events.
    fn id(&self) -> Result<u64> {
        let path = Path::new(tracing::TRACER).join(format!("events/kprobes/{PROBE}/id"));
        let text = fs::read_to_string(&path).map_err(on("read", &path))?;
        text.trim().parse().map_err(other)
    }

    fn remove() {
        let _ = append(&format!("-:{PROBE}"));
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        Self::remove();
    }
}

/// To the list of probes; to write it anew would remove those of others.
fn append(line: &str) -> Result<()> {
    let path = Path::new(tracing::TRACER).join("kprobe_events");
    let opened = fs::OpenOptions::new().append(true).open(&path);
    let written = opened.and_then(|mut file| file.write_all(line.as_bytes()));
    written.map_err(on("write to", &path))
}
