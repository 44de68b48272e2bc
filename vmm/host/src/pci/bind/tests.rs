//! A kernel that plays what Linux does to the files of a made machine.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::super::tests::machine::{Machine, address, directory, driver_of};
use super::{BindError, Kernel, bind, unbind};
use crate::pci::Obstacle;

const GPU: &str = "0000:01:00.0";
const SOUND: &str = "0000:01:00.1";
const CARD: &str = "0000:03:00.0";

/// Drivers that there are, with the functions that they take by their own.
struct Played<'a> {
    machine: &'a Machine,
    natural: Vec<(&'static str, &'static str)>,
    /// What was written, by the names of files.
    written: RefCell<Vec<String>>,
    /// A probe of this function does nothing.
    deaf: Option<&'static str>,
}

impl<'a> Played<'a> {
    fn new(machine: &'a Machine) -> Self {
        Self {
            machine,
            natural: vec![(GPU, "nouveau"), (SOUND, "snd_hda_intel"), (CARD, "e1000e")],
            written: RefCell::default(),
            deaf: None,
        }
    }

    fn attach(&self, function: &str, driver: &str) {
        let directory = directory(self.machine, address(function));
        let target = self.machine.places().driver(driver);
        symlink(target, directory.join("driver")).unwrap();
    }

    fn probe(&self, function: &str) {
        let directory = directory(self.machine, address(function));
        if self.deaf == Some(function) || driver_of(&directory).is_some() {
            return;
        }
        let only = fs::read_to_string(directory.join("driver_override")).unwrap();
        let natural = self.natural.iter().find(|(one, _)| *one == function);
        let driver = match only.trim() {
            "" | "(null)" => natural.map(|(_, driver)| *driver),
            driver => Some(driver),
        };
        if let Some(driver) = driver
            && self.machine.places().driver(driver).exists()
        {
            self.attach(function, driver);
        }
    }
}

impl Kernel for Played<'_> {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let file = path.file_name().unwrap().to_str().unwrap();
        self.written
            .borrow_mut()
            .push(format!("{file} {}", text.trim()));
        match file {
            "driver_override" => fs::write(path, text)?,
            "unbind" => {
                let directory = directory(self.machine, address(text));
                fs::remove_file(directory.join("driver"))?;
            }
            "drivers_probe" => self.probe(text),
            "bind" => self.attach(
                text,
                path.parent()
                    .unwrap()
                    .file_name()
                    .unwrap()
                    .to_str()
                    .unwrap(),
            ),
            _ => return Err(io::ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    fn load(&self, module: &str) -> Result<(), String> {
        self.written.borrow_mut().push(format!("load {module}"));
        self.machine
            .write(&format!("sys/bus/pci/drivers/{module}/bind"), "");
        Ok(())
    }
}

fn machine() -> Machine {
    let machine = Machine::new();
    for (function, id, group, driver) in [
        (GPU, "10de:1eb8", 1, "nouveau"),
        (SOUND, "10de:10f8", 1, "snd_hda_intel"),
        (CARD, "8086:10d3", 3, "e1000e"),
    ] {
        let class = if function == GPU {
            0x03_02_00
        } else {
            0x04_03_00
        };
        machine
            .function(function, id, class)
            .group(group)
            .driver(driver);
    }
    machine
}

fn drivers(machine: &Machine) -> Vec<String> {
    let of = |function| driver_of(&directory(machine, address(function))).unwrap_or_default();
    [GPU, SOUND, CARD].map(of).to_vec()
}

const BEFORE: [&str; 3] = ["nouveau", "snd_hda_intel", "e1000e"];

#[test]
fn a_gpu_is_bound_with_its_sound_and_given_back() {
    let machine = machine();
    let kernel = Played::new(&machine);
    let state = machine.path("state");
    let places = machine.places();
    let done = bind(&kernel, &places, &state, &[address(GPU)]).unwrap();
    assert_eq!(drivers(&machine), ["vfio-pci", "vfio-pci", "e1000e"]);
    assert_eq!(done.len(), 2);
    assert_eq!(done[1].from.as_deref(), Some("snd_hda_intel"));
    assert_eq!(done[1].to.as_deref(), Some("vfio-pci"));
    // Again: nothing is written.
    kernel.written.borrow_mut().clear();
    let again = bind(&kernel, &places, &state, &[address(SOUND), address(GPU)]).unwrap();
    assert!(again.iter().all(|change| change.from == change.to));
    assert_eq!(again.len(), 2);
    assert_eq!(*kernel.written.borrow(), Vec::<String>::new());

    let done = unbind(&kernel, &places, &state, &[address(SOUND)]).unwrap();
    assert_eq!(drivers(&machine), BEFORE);
    assert_eq!(done[0].to.as_deref(), Some("nouveau"));
    assert_eq!(fs::read_dir(state.join("pci")).unwrap().count(), 0);
    kernel.written.borrow_mut().clear();
    let again = unbind(&kernel, &places, &state, &[address(GPU)]).unwrap();
    assert!(again.iter().all(|change| change.from == change.to));
    assert_eq!(*kernel.written.borrow(), Vec::<String>::new());
    // Nothing keeps its driver from it when the machine finds it anew.
    let file = directory(&machine, address(GPU)).join("driver_override");
    assert_eq!(fs::read_to_string(file).unwrap().trim(), "");
}

#[test]
fn a_failure_on_the_way_puts_all_back() {
    let machine = machine();
    let mut kernel = Played::new(&machine);
    kernel.deaf = Some(CARD);
    // It is probed to no avail, also by its own driver: that takes it by name.
    let state = machine.path("state");
    let both = [address(GPU), address(CARD)];
    let error = bind(&kernel, &machine.places(), &state, &both).unwrap_err();
    assert!(matches!(error, BindError::NotTaken { .. }), "{error}");
    let told = error.to_string();
    assert!(
        told.contains("did not get the driver vfio-pci, it has none"),
        "{told}"
    );
    assert_eq!(drivers(&machine), BEFORE);
    assert_eq!(fs::read_dir(state.join("pci")).unwrap().count(), 0);
}

#[test]
fn of_several_drivers_the_former_has_it_again() {
    let machine = machine();
    let mut kernel = Played::new(&machine);
    let state = machine.path("state");
    let places = machine.places();
    // The kernel's own choice would be another: a second driver, or vfio-pci by vfio-pci.ids=.
    for natural in ["nvidia", "vfio-pci"] {
        machine.write(&format!("sys/bus/pci/drivers/{natural}/bind"), "");
        kernel.natural.retain(|(function, _)| *function != GPU);
        kernel.natural.push((GPU, natural));
        bind(&kernel, &places, &state, &[address(GPU)]).unwrap();
        unbind(&kernel, &places, &state, &[address(GPU)]).unwrap();
        assert_eq!(drivers(&machine), BEFORE, "{natural}");
    }
    // Which was the former is not known: the kernel chooses, and that is told.
    bind(&kernel, &places, &state, &[address(GPU)]).unwrap();
    fs::remove_file(state.join(format!("pci/{GPU}.json"))).unwrap();
    let error = unbind(&kernel, &places, &state, &[address(GPU)]).unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains("it has vfio-pci") && told.contains("vfio-pci.ids="),
        "{told}"
    );
    assert_eq!(drivers(&machine)[0], "vfio-pci");
}

#[test]
fn what_had_no_driver_has_none_again() {
    let machine = machine();
    let mut kernel = Played::new(&machine);
    fs::remove_file(directory(&machine, address(CARD)).join("driver")).unwrap();
    kernel.natural.clear();
    let state = machine.path("state");
    bind(&kernel, &machine.places(), &state, &[address(CARD)]).unwrap();
    assert_eq!(drivers(&machine)[2], "vfio-pci");
    let done = unbind(&kernel, &machine.places(), &state, &[address(CARD)]).unwrap();
    assert_eq!((drivers(&machine)[2].as_str(), &done[0].to), ("", &None));
}

#[test]
fn a_damaged_note_of_the_former_driver_is_no_path() {
    let machine = machine();
    let kernel = Played::new(&machine);
    let state = machine.path("state");
    for note in [
        "{",
        r#"{"driver": "../../../tmp"}"#,
        r#"{"driver": ""}"#,
        "[]",
    ] {
        bind(&kernel, &machine.places(), &state, &[address(CARD)]).unwrap();
        fs::write(state.join(format!("pci/{CARD}.json")), note).unwrap();
        unbind(&kernel, &machine.places(), &state, &[address(CARD)]).unwrap();
        assert_eq!(drivers(&machine), BEFORE, "{note}");
    }
}

#[test]
fn vfio_pci_is_loaded_where_it_is_not() {
    let machine = machine();
    let kernel = Played::new(&machine);
    fs::remove_dir_all(machine.places().driver("vfio-pci")).unwrap();
    let state = machine.path("state");
    let refused = bind(&kernel, &machine.places(), &state, &[address(GPU)]).unwrap_err();
    assert!(
        matches!(&refused, BindError::Refused { obstacles, .. } if *obstacles == [Obstacle::NoVfio])
    );
    assert_eq!(*kernel.written.borrow(), Vec::<String>::new());
    machine.write("lib/modules/6/modules.dep", "kernel/vfio-pci.ko:\n");
    bind(&kernel, &machine.places(), &state, &[address(GPU)]).unwrap();
    assert_eq!(kernel.written.borrow()[0], "load vfio-pci");
    assert_eq!(drivers(&machine), ["vfio-pci", "vfio-pci", "e1000e"]);
}

#[test]
fn half_a_group_is_refused_and_the_whole_of_it_is_named() {
    let machine = machine();
    let kernel = Played::new(&machine);
    let other = machine.function("0000:04:00.0", "1b36:0002", 0x07_00_02);
    other.group(3).driver("serial");
    let state = machine.path("state");
    let error = bind(&kernel, &machine.places(), &state, &[address(CARD)]).unwrap_err();
    let told = error.to_string();
    for part in [
        CARD,
        "0000:04:00.0 (",
        "driver serial",
        "fief gpu bind 0000:03:00.0 0000:04:00.0",
    ] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(*kernel.written.borrow(), Vec::<String>::new());
    let both = [address(CARD), address("04:00.0")];
    let done = bind(&kernel, &machine.places(), &state, &both).unwrap();
    assert_eq!(done.len(), 2);
    assert_eq!(drivers(&machine)[2], "vfio-pci");
}

#[test]
fn what_is_in_use_or_not_there_is_left_alone() {
    let machine = machine();
    let kernel = Played::new(&machine);
    let state = machine.path("state");
    let places = machine.places();
    for command in [bind, unbind] {
        let error = command(
            &kernel,
            &places,
            &state,
            &[address(GPU), address("09:00.0")],
        );
        assert!(matches!(error.unwrap_err(), BindError::NoFunction(_)));
    }
    bind(&kernel, &places, &state, &[address(GPU)]).unwrap();
    machine.open(77, "fief-vmm", "/dev/vfio/1");
    let error = unbind(&kernel, &places, &state, &[address(GPU)]).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("fief-vmm (process 77)"), "{told}");
    assert_eq!(drivers(&machine), ["vfio-pci", "vfio-pci", "e1000e"]);

    // A driver of its vendor's that speaks VFIO is not ours to take away.
    let vfio = directory(&machine, address(CARD)).join("vfio-dev/vfio0");
    fs::create_dir_all(vfio).unwrap();
    let error = unbind(&kernel, &places, &state, &[address(CARD)]).unwrap_err();
    assert!(matches!(error, BindError::OwnDriver { .. }), "{error}");
    let done = bind(&kernel, &places, &state, &[address(CARD)]).unwrap();
    assert_eq!(done[0].from, done[0].to);
    assert_eq!(drivers(&machine)[2], "e1000e");
}

#[test]
fn two_commands_do_not_change_drivers_at_once() {
    let machine = machine();
    let kernel = Played::new(&machine);
    let state = machine.path("state");
    let lock = super::former::lock(&state).unwrap();
    for command in [bind, unbind] {
        let error = command(&kernel, &machine.places(), &state, &[address(GPU)]).unwrap_err();
        assert!(matches!(error, BindError::Busy), "{error}");
    }
    drop(lock);
    bind(&kernel, &machine.places(), &state, &[address(GPU)]).unwrap();
}

#[test]
fn a_state_directory_that_cannot_be_written_leaves_all_as_it_was() {
    let machine = machine();
    let kernel = Played::new(&machine);
    machine.write("state", "a file");
    let state = machine.path("state");
    let error = bind(&kernel, &machine.places(), &state, &[address(CARD)]).unwrap_err();
    assert!(matches!(error, BindError::Lock { .. }), "{error}");
    assert_eq!(*kernel.written.borrow(), Vec::<String>::new());
}
