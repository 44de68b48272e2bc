//! Against a server that answers in the right form, with random content: what it says of itself, its configuration space,
//! and every register.

use std::sync::Arc;

use fief_devices::pci::{PciFunction, ROM_BAR};

use super::hostile::{Script, against, describe, reply};
use super::memfd;
use crate::fake::{FakeMachine, Random};
use crate::passthrough::Passthrough;
use crate::region::Region;
use crate::remote::{Interrupt, RemoteFunction};
use std::os::fd::AsRawFd;

/// Rounds, each with another server.
const ROUNDS: u64 = 400;

/// The server.
struct Liar {
    random: Random,
    config: Vec<u8>,
}

impl Liar {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut config: Vec<u8> = (0..4096).map(|_| random.next() as u8).collect();
        // Often enough a function that one looks at: ids, no bridge, a list of capabilities at its first place.
        config[..4].copy_from_slice(&[0xEF, 0xF1, 0x57, 0x7E]);
        config[0x0E] = 0;
        config[0x34] = 0x40;
        config[6] |= 1 << 4;
        for at in (0x40..0x100).step_by(16) {
            let ids = [0x01, 0x05, 0x11, 0x10, 0x13, 0x09];
            config[at] = ids[random.next() as usize % ids.len()];
            config[at + 1] = if random.next().is_multiple_of(8) {
                random.next() as u8
            } else {
                (at as u8).wrapping_add(16)
            };
        }
        // And BARs and an MSI-X that are possible, mostly.
        for bar in 0..6 {
            config[0x10 + 4 * bar] = [0, 0, 8, 4, 0xC, 1][random.next() as usize % 6];
        }
        for at in (0x40..0x100).step_by(16) {
            if config[at] == 0x11 && !random.next().is_multiple_of(4) {
                let place = |bar: u8| [(bar % 6) | (bar & 0x40), bar & 7, 0, 0];
                config[at + 3] = 0;
                config[at + 4..at + 8].copy_from_slice(&place(random.next() as u8));
                config[at + 8..at + 12].copy_from_slice(&place(random.next() as u8));
            }
        }
        Self { random, config }
    }

    fn byte(&mut self) -> u8 {
        (self.random.next() >> 32) as u8
    }

    /// A size that BARs have, or another.
    fn size(&mut self) -> u64 {
        match self.byte() % 32 {
            0 => 0,
            1 => self.random.next(),
            2 => u64::MAX,
            3 => 1 << (self.byte() % 64),
            _ => 1 << (12 + self.byte() % 10),
        }
    }

    fn region(&mut self, answer: &mut Vec<u8>, index: u32) {
        let size = if index == 7 { 4096 } else { self.size() };
        answer[4] = if index == 7 { 3 } else { self.byte() & 15 };
        answer[12..16].copy_from_slice(&32_u32.to_le_bytes());
        answer[16..24].copy_from_slice(&size.to_le_bytes());
        // Sparse areas, some of which make sense.
        let count = self.byte() % 4;
        answer.extend([1, 0, 1, 0, 0, 0, 0, 0, count, 0, 0, 0, 0, 0, 0, 0]);
        for _ in 0..count {
            let (start, length) = (self.size(), self.size());
            answer.extend(start.to_le_bytes());
            answer.extend(length.to_le_bytes());
        }
    }

    fn answer(&mut self, command: u16, body: &[u8]) -> Vec<u8> {
        let number = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
        match command {
            9 => {
                let count = number(12) as usize;
                let at = number(0) as usize;
                let mut answer = body[..16].to_vec();
                match number(8) {
                    7 => answer.extend(&self.config[at..at + count]),
                    _ => answer.extend((0..count).map(|_| self.byte())),
                }
                answer
            }
            10 => body[..16].to_vec(),
            _ => vec![],
        }
    }

    fn serve(mut self, mut script: Script) {
        let memory = memfd(1 << 24);
        while let Some((header, body)) = script.receive() {
            if header.command > 7 || matches!(header.command, 2 | 3) {
                let answer = self.answer(header.command, &body);
                script.send(reply(header, answer.len()), &answer);
                continue;
            }

            let mut answer = describe(&header, &body);
            match header.command {
                5 => self.region(&mut answer, u32::from(body[8])),
                7 => answer[12..16].copy_from_slice(&(self.size() as u32).to_le_bytes()),
                _ => {}
            }
            // Now and then a byte that is just wrong.
            if header.command > 1 && self.byte() == 0 {
                let place = usize::from(self.byte()) % answer.len();
                answer[place] = self.byte();
            }
            let length = reply(header, answer.len());
            script.send_with(length, &answer, &[memory.as_raw_fd()]);
        }
    }
}

/// What a guest may do with a function, if a machine takes it.
fn use_it(function: &Passthrough, random: &mut Random) {
    let mut space = function.config_space();
    for _ in 0..60 {
        let offset = (random.next() % 4096) as u16 & !3;
        let value = (random.next() as u32).to_le_bytes();
        let mut data = [0; 4];
        function.config_read(&space, offset, &mut data);
        space.write(offset, &value);
        function.config_write(&space, offset, &value);
        let bar = (random.next() % 7) as u8;
        let at = random.next() >> (random.next() % 64);
        function.bar_read(bar.min(ROM_BAR), at, &mut data);
        function.bar_write(bar.min(ROM_BAR), at, &value);
    }
    for bar in function.declared_bars() {
        // The bus gives no others.
        assert!(bar.size.is_power_of_two(), "{bar:?}");
    }
    for bar in 0..6 {
        function.bar_moved(bar, Some(0x1_0000_0000 * (u64::from(bar) + 1)));
        function.bar_moved(bar, None);
    }
    function.reset();
}

#[test]
fn a_machine_takes_or_refuses_a_device_whatever_that_says_of_itself() {
    let mut taken = 0;
    for seed in 0..ROUNDS {
        let (function, thread) = against(move |script| Liar::new(seed).serve(script));
        let Ok(function) = function else {
            thread.join().unwrap();
            continue;
        };
        for region in Region::ALL {
            let info = function.region(region);
            assert!(info.mappable.iter().all(|area| area.end <= info.size));
        }
        assert!(function.interrupts(Interrupt::Msix) <= 2048);
        let machine = FakeMachine::default();
        let passed = Passthrough::new("liar".into(), Arc::new(function), machine.platform());
        if let Ok(passed) = passed {
            taken += 1;
            use_it(&passed, &mut Random::new(seed));
        }
        thread.join().unwrap();
    }
    // Not all are so bad that nothing of this was tried.
    assert!(taken > ROUNDS / 20, "{taken} of {ROUNDS}");
}
