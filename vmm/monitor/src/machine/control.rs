//! What the vCPU threads are asked to do, and where they are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::kick::Kicks;
use super::{Event, ExitReason, MachineError, Notice, OnEvent, Released};
use crate::config::OnReboot;
use crate::kvm::KvmError;
use crate::kvm::vcpu::Entry;

/// What the control side wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Paused,
    Running,
    Ended,
}

/// How far a restart in place is. Every vCPU is reset before any of the new guest's instructions runs, which may be one
/// that starts another vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restart {
    /// The guest did not ask for one.
    No,
    /// The vCPUs are being stopped.
    Stopping,
    /// All have stood still. This many are not told yet to reset theirs; when all have, the machine follows.
    Resetting { untold: usize },
}

struct State {
    wanted: Wanted,
    restart: Restart,
    /// Counts the restarts that came as far as resetting the vCPUs.
    resets: u64,
    /// Number of vCPU threads that stand still, ready to run.
    parked: usize,
    /// Where the boot CPU starts; changes with every start.
    entry: Option<Entry>,
    /// Counts the starts of the guest: 0 before the first.
    starts: u64,
    /// The first vCPU that could not be made.
    failed: Option<KvmError>,
    reported: bool,
}

/// What a vCPU thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Run,
    /// Begin at the entry.
    Start(Entry),
    /// Reset the vCPU, then ask again.
    Reset,
    /// Everything stands still and every vCPU is reset: restart the machine, then ask again.
    Restart,
    End,
}

/// What a vCPU thread has been told to do.
#[derive(Debug, Default)]
pub struct Told {
    starts: u64,
    resets: u64,
}

/// Shared by the vCPU threads, the devices and the control side.
pub struct Control {
    /// Not (wanted running and no restart): the only thing a vCPU thread looks at between exits.
    attention: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    kicks: Kicks,
    vcpus: usize,
    on_reboot: OnReboot,
    on_event: OnEvent,
}

impl Control {
    pub fn new(vcpus: u8, on_reboot: OnReboot, on_event: OnEvent) -> Self {
        Self {
            attention: AtomicBool::new(true),
            state: Mutex::new(State {
                wanted: Wanted::Paused,
                restart: Restart::No,
                resets: 0,
                parked: 0,
                entry: None,
                starts: 0,
                failed: None,
                reported: false,
            }),
            changed: Condvar::new(),
            kicks: Kicks::default(),
            vcpus: usize::from(vcpus),
            on_reboot,
            on_event,
        }
    }

    pub fn kicks(&self) -> &Kicks {
        &self.kicks
    }

    /// Something else than running is asked of the vCPUs.
    pub fn attention(&self) -> bool {
        self.attention.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change known to everyone whom it concerns.
    fn announce(&self, state: &State) {
        let attention = state.wanted != Wanted::Running || state.restart != Restart::No;
        self.attention.store(attention, Ordering::Release);
        self.changed.notify_all();
        if attention {
            self.kicks.kick_all();
        }
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn resume(&self) -> Result<(), MachineError> {
        let mut state = self.lock();
        if state.wanted == Wanted::Ended {
            return Err(MachineError::Ended);
        }
        state.wanted = Wanted::Running;
        self.announce(&state);
        Ok(())
    }

    /// Stops the vCPUs and waits until they stand still.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn pause(&self) -> Result<(), MachineError> {
        let mut state = self.lock();
        if state.wanted == Wanted::Ended {
            return Err(MachineError::Ended);
        }
        state.wanted = Wanted::Paused;
        self.announce(&state);
        while state.parked < self.vcpus || state.restart != Restart::No {
            if state.wanted == Wanted::Ended {
                return Err(MachineError::Ended);
            }
            state = self.wait(state);
        }
        Ok(())
    }

    /// Waits until every vCPU thread has made its vCPU.
    ///
    /// # Errors
    /// One of them could not.
    pub fn wait_ready(&self) -> Result<(), KvmError> {
        let mut state = self.lock();
        loop {
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
            if state.parked == self.vcpus {
                return Ok(());
            }
            state = self.wait(state);
        }
    }

    /// A vCPU could not be made.
    pub fn not_ready(&self, error: KvmError) {
        let mut state = self.lock();
        state.failed.get_or_insert(error);
        self.changed.notify_all();
    }

    /// Sets where the boot CPU starts.
    pub fn set_start(&self, entry: Entry) {
        let mut state = self.lock();
        state.entry = Some(entry);
        state.starts = state.starts.saturating_add(1);
    }

    /// The guest asked for a reset.
    pub fn reset(&self) {
        match self.on_reboot {
            OnReboot::Exit => self.end(ExitReason::Reboot),
            OnReboot::Restart => {
                let mut state = self.lock();
                if state.wanted != Wanted::Ended && state.restart == Restart::No {
                    state.restart = Restart::Stopping;
                    self.announce(&state);
                }
            }
        }
    }

    /// The restart is done: reports it and lets the vCPUs go on.
    pub fn restarted(&self) {
        (self.on_event)(Event::Restarted);
        let mut state = self.lock();
        state.restart = Restart::No;
        self.announce(&state);
    }

    /// The guest let go of something.
    pub fn released(&self, what: Released) {
        (self.on_event)(Event::Released(what));
    }

    /// Something happened to a passed-through device.
    pub fn noticed(&self, id: String, notice: Notice) {
        (self.on_event)(Event::Noticed(id, notice));
    }

    /// Ends the machine; the first reason counts and is reported.
    pub fn end(&self, reason: ExitReason) {
        let mut state = self.lock();
        state.wanted = Wanted::Ended;
        let report = !std::mem::replace(&mut state.reported, true);
        self.announce(&state);
        drop(state);
        if report {
            (self.on_event)(Event::Ended(reason));
        }
    }

    /// Ends the vCPU threads of a machine that was never finished; nothing is reported.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.wanted = Wanted::Ended;
        state.reported = true;
        self.announce(&state);
    }

    /// Stands still until there is something to do for vCPU `index`, whose thread was `told` this before.
    pub fn next(&self, index: u8, told: &mut Told) -> Next {
        let mut state = self.lock();
        state.parked = state.parked.saturating_add(1);
        self.changed.notify_all();
        let next = loop {
            if let Some(next) = self.decide(&mut state, index, told) {
                break next;
            }
            state = self.wait(state);
        };
        state.parked = state.parked.saturating_sub(1);
        next
    }

    /// `None`: go on standing still.
    fn decide(&self, state: &mut State, index: u8, told: &mut Told) -> Option<Next> {
        if state.wanted == Wanted::Ended {
            return Some(Next::End);
        }
        let still = state.parked == self.vcpus;
        if state.restart == Restart::Stopping && still {
            state.restart = Restart::Resetting { untold: self.vcpus };
            state.resets = state.resets.saturating_add(1);
            self.changed.notify_all();
        }
        match &mut state.restart {
            Restart::Resetting { untold } if told.resets != state.resets => {
                *untold = untold.saturating_sub(1);
                told.resets = state.resets;
                Some(Next::Reset)
            }
            // The boot CPU's thread restarts the machine; then all begin anew.
            Restart::Resetting { untold: 0 } if index == 0 && still => Some(Next::Restart),
            Restart::Stopping | Restart::Resetting { .. } => None,
            Restart::No if state.wanted != Wanted::Running => None,
            Restart::No => match state.entry {
                Some(entry) if told.starts != state.starts => {
                    told.starts = state.starts;
                    Some(Next::Start(entry))
                }
                _ => Some(Next::Run),
            },
        }
    }
}

#[cfg(test)]
mod tests;
