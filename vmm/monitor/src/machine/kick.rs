//! Gets vCPU threads out of KVM_RUN.
//!
//! A signal alone would be lost when it arrives just before KVM_RUN. Its handler therefore sets the vCPU's
//! immediate-exit flag, with which KVM_RUN returns at once (api.rst, `immediate_exit`).

use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::{Mutex, Once, PoisonError};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The immediate-exit flag of this thread's vCPU. Constant at first and without destructor, so that the signal
    /// handler's access allocates and registers nothing.
    static FLAG: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = FLAG.get();
    if !flag.is_null() {
        // SAFETY: a flag that is set belongs to the vCPU that this very thread owns (`Kickable` clears it first when the
        // thread lets go of it); KVM reads it only in KVM_RUN of this thread.
        unsafe { flag.write_volatile(1) };
    }
}

/// The threads that can be kicked.
#[derive(Default)]
pub struct Kicks {
    threads: Mutex<Vec<libc::pthread_t>>,
}

/// The calling thread as one that can be kicked, until this is dropped.
pub struct Kickable<'a> {
    kicks: &'a Kicks,
    flag: *mut u8,
}

impl Kicks {
    /// Registers the calling thread, whose vCPU has its immediate-exit flag at `flag`. The flag must stay where it is
    /// until the result is dropped.
    pub fn register(&self, flag: *mut u8) -> Kickable<'_> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            if let Err(error) = register_signal_handler(SIGRTMIN(), on_kick) {
                tracing::error!("vCPUs cannot be stopped: no handler for their signal: {error}");
            }
        });
        FLAG.set(flag);
        // SAFETY: asks for the caller's own id.
        let this = unsafe { libc::pthread_self() };
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(this);
        Kickable { kicks: self, flag }
    }

    /// Makes every registered thread leave KVM_RUN, now or when it gets there.
    pub fn kick_all(&self) {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.iter() {
            // SAFETY: threads remove themselves under the same lock before they end, so the id is of a live thread.
            unsafe { libc::pthread_kill(*thread, SIGRTMIN()) };
        }
    }
}

impl Kickable<'_> {
    /// Lets the next KVM_RUN run. Look for what is asked of the vCPU after this, not before.
    pub fn clear(&self) {
        // SAFETY: the flag is valid as `register` demands; this thread alone uses it.
        unsafe { self.flag.write_volatile(0) };
    }

    /// Makes the next KVM_RUN return at once.
    pub fn set(&self) {
        // SAFETY: as above.
        unsafe { self.flag.write_volatile(1) };
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        // SAFETY: asks for the caller's own id. The type holds a raw pointer, so it never left its thread.
        let this = unsafe { libc::pthread_self() };
        self.kicks
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|thread| *thread != this);
        FLAG.set(null_mut());
    }
}
