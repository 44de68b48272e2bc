use std::sync::Arc;
use std::thread::JoinHandle;

use super::*;

const ENTRY: Entry = Entry::Linux64 {
    rip: 0x10_0000,
    boot_params: 0,
};

/// vCPU threads without vCPUs, which note what they are told.
struct Rig {
    control: Arc<Control>,
    notes: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Rig {
    /// Two vCPUs that run.
    fn new() -> Self {
        let notes: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&notes);
        let on_event =
            Box::new(move |event: Event| noted.lock().unwrap().push(format!("{event:?}")));
        let control = Arc::new(Control::new(2, OnReboot::Restart, on_event));
        control.set_start(ENTRY);
        let threads = [0, 1].map(|index| {
            let (control, notes) = (Arc::clone(&control), Arc::clone(&notes));
            std::thread::spawn(move || vcpu(&control, &notes, index))
        });
        let rig = Self {
            control,
            notes,
            threads: threads.into(),
        };
        rig.control.resume().unwrap();
        rig.wait_for(&["start 0", "start 1"]);
        rig
    }

    /// Waits for `notes` in any order, as the next ones, and takes them.
    #[track_caller]
    fn wait_for(&self, notes: &[&str]) {
        loop {
            let mut noted = self.notes.lock().unwrap();
            if noted.len() >= notes.len() {
                let mut first: Vec<String> = noted.drain(..notes.len()).collect();
                first.sort();
                assert_eq!(first, notes);
                return;
            }
            drop(noted);
            std::thread::yield_now();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.control.abandon();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn vcpu(control: &Control, notes: &Mutex<Vec<String>>, index: u8) {
    let mut told = Told::default();
    let note = |what: &str| notes.lock().unwrap().push(format!("{what} {index}"));
    loop {
        match control.next(index, &mut told) {
            Next::End => return,
            Next::Reset => note("reset"),
            Next::Restart => {
                note("restart");
                control.set_start(ENTRY);
                control.restarted();
            }
            guest => {
                note(if guest == Next::Run { "run" } else { "start" });
                while !control.attention() {
                    std::thread::yield_now();
                }
            }
        }
    }
}

#[test]
fn every_vcpu_is_reset_before_the_machine_and_that_before_any_runs() {
    let rig = Rig::new();
    for _ in 0..3 {
        rig.control.reset();
        rig.wait_for(&["reset 0", "reset 1"]);
        rig.wait_for(&["restart 0"]);
        rig.wait_for(&["Restarted"]);
        rig.wait_for(&["start 0", "start 1"]);
    }
}

#[test]
fn a_restart_is_carried_out_in_a_pause_and_the_new_guest_waits_for_its_end() {
    let rig = Rig::new();
    rig.control.pause().unwrap();
    rig.control.reset();
    rig.control.pause().unwrap();
    rig.wait_for(&["reset 0", "reset 1"]);
    rig.wait_for(&["restart 0"]);
    rig.wait_for(&["Restarted"]);
    assert_eq!(*rig.notes.lock().unwrap(), [""; 0]);
    rig.control.resume().unwrap();
    rig.wait_for(&["start 0", "start 1"]);
}
