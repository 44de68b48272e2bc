//! 16550A serial port (National Semiconductor PC16550D data sheet; register names are its).
//!
//! Transmission takes no time: what the guest writes goes into a bounded buffer that a worker drains (see
//! [`serial`](super::serial)); bytes that find it full are dropped and counted, so that a stuck reader never stops a vCPU.
//! Reception is lossless: the worker reads input only while the bounded receive queue has room.
//!
//! The interrupt is an edge on a PC's ISA line: one is raised whenever a cause becomes active that was not. A driver that
//! fills the FIFO from its interrupt handler thus gets one interrupt for 16 bytes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::irq::InterruptLine;

/// Bytes of output that wait for the worker.
pub const OUTPUT_CAPACITY: usize = 64 << 10;
/// Bytes of input that wait for the guest.
pub const INPUT_CAPACITY: usize = 256;

/// Register offsets; the first two are the divisor while LCR.DLAB is set.
const RBR_THR: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MASK: u8 = 0x0F;

const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_FIFO_ENABLED: u8 = 0xC0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DLAB: u8 = 1 << 7;

const MCR_LOOP: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1F;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
/// Holding register and transmitter are empty: always.
const LSR_EMPTY: u8 = 1 << 5 | 1 << 6;

/// CTS, DSR and DCD: somebody is there and ready.
const MSR_CONNECTED: u8 = 0xB0;

/// A serial port. vCPU threads read and write its registers; a worker drains and feeds it.
pub struct Uart {
    registers: Mutex<Registers>,
    line: Arc<dyn InterruptLine>,
    /// Tells the worker: there is output, or there is room for input again.
    wake: EventFd,
}

/// State for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UartState {
    pub ier: u8,
    pub lcr: u8,
    pub mcr: u8,
    pub scr: u8,
    pub divisor: [u8; 2],
    pub fifo: bool,
    pub overrun: bool,
    /// The transmitter-empty interrupt is due.
    pub transmitter_empty: bool,
    /// Input that the guest has not read.
    pub input: Vec<u8>,
    /// Output that has not been written.
    pub output: Vec<u8>,
}

#[derive(Default)]
struct Registers {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
    fifo: bool,
    overrun: bool,
    transmitter_empty: bool,
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    /// The causes (as IER bits) that an edge has been raised for.
    raised: u8,
    /// The worker waits for room before it reads more input.
    input_stalled: bool,
    /// An access gave the worker something to do.
    wake_due: bool,
    dropped: u64,
}

impl Uart {
    /// A serial port after reset.
    ///
    /// # Errors
    /// No eventfd could be made.
    pub fn new(line: Arc<dyn InterruptLine>) -> io::Result<Self> {
        Self::from_state(line, UartState::default())
    }

    /// As it was saved. Call [`resume`](Self::resume) before the guest goes on.
    ///
    /// # Errors
    /// No eventfd could be made.
    pub fn from_state(line: Arc<dyn InterruptLine>, state: UartState) -> io::Result<Self> {
        let registers = Registers {
            ier: state.ier & IER_MASK,
            lcr: state.lcr,
            mcr: state.mcr & MCR_MASK,
            scr: state.scr,
            divisor: state.divisor,
            fifo: state.fifo,
            overrun: state.overrun,
            transmitter_empty: state.transmitter_empty,
            input: state.input.into_iter().take(INPUT_CAPACITY).collect(),
            output: state.output.into_iter().take(OUTPUT_CAPACITY).collect(),
            ..Registers::default()
        };
        Ok(Self {
            registers: Mutex::new(registers),
            line,
            wake: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> UartState {
        let registers = self.lock();
        UartState {
            ier: registers.ier,
            lcr: registers.lcr,
            mcr: registers.mcr,
            scr: registers.scr,
            divisor: registers.divisor,
            fifo: registers.fifo,
            overrun: registers.overrun,
            transmitter_empty: registers.transmitter_empty,
            input: registers.input.iter().copied().collect(),
            output: registers.output.iter().copied().collect(),
        }
    }

    /// Registers as after power-on and no input: the machine is reset. Output that waits is still written.
    pub fn reset(&self) {
        let registers = &mut *self.lock();
        let fresh = Registers {
            output: std::mem::take(&mut registers.output),
            dropped: registers.dropped,
            ..Registers::default()
        };
        *registers = fresh;
        self.wake();
    }

    /// Raises the interrupt again for every active cause, and wakes the worker: an edge or a wake-up from before a
    /// snapshot may have been lost.
    pub fn resume(&self) {
        let mut registers = self.lock();
        registers.raised = 0;
        self.raise(&mut registers);
        self.wake();
    }

    /// Becomes readable when the worker should look for output or room for input.
    pub fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// Copies the oldest waiting output into `buffer` and returns how much that is.
    pub fn peek_output(&self, buffer: &mut [u8]) -> usize {
        let registers = self.lock();
        let pairs = buffer.iter_mut().zip(&registers.output);
        pairs.map(|(to, from)| *to = *from).count()
    }

    /// Removes the `count` oldest bytes of output: they have been written.
    pub fn consume_output(&self, count: usize) {
        let mut registers = self.lock();
        let count = count.min(registers.output.len());
        registers.output.drain(..count);
    }

    /// Bytes of output that were dropped because the buffer was full, since the port was made.
    pub fn dropped_output(&self) -> u64 {
        self.lock().dropped
    }

    /// How many bytes of input there is room for. When the answer is 0, the wake event tells when there is room again.
    pub fn input_room(&self) -> usize {
        let mut registers = self.lock();
        let room = INPUT_CAPACITY.saturating_sub(registers.input.len());
        registers.input_stalled = room == 0;
        room
    }

    /// Gives the guest input; takes what there is room for and returns how much that was.
    pub fn feed(&self, input: &[u8]) -> usize {
        let mut registers = self.lock();
        let taken = INPUT_CAPACITY
            .saturating_sub(registers.input.len())
            .min(input.len());
        registers.input.extend(input.iter().take(taken));
        self.raise(&mut registers);
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the worker look at the port.
    pub(super) fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            tracing::error!("cannot wake the serial port's worker: {error}");
        }
    }

    /// Raises an edge if a cause is active that was not when this was last asked.
    fn raise(&self, registers: &mut Registers) {
        let causes = registers.causes();
        let fresh = causes & !registers.raised;
        registers.raised = causes;
        if fresh != 0
            && let Err(error) = self.line.trigger()
        {
            tracing::error!("cannot raise the serial port's interrupt: {error}");
        }
    }

    /// Works on the registers and, once they are unlocked again, wakes the worker if that left it something to do. A
    /// worker that was woken earlier would at once wait for the lock.
    fn access(&self, work: impl FnOnce(&mut Registers)) {
        let mut registers = self.lock();
        work(&mut registers);
        let wake = std::mem::take(&mut registers.wake_due);
        drop(registers);
        if wake {
            self.wake();
        }
    }
}

impl Registers {
    fn transmit(&mut self, byte: u8) {
        self.transmitter_empty = true;
        if self.mcr & MCR_LOOP != 0 {
            if self.input.len() < INPUT_CAPACITY {
                self.input.push_back(byte);
            } else {
                self.overrun = true;
            }
        } else if self.output.len() < OUTPUT_CAPACITY {
            self.output.push_back(byte);
            self.wake_due |= self.output.len() == 1;
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    fn receive(&mut self) -> u8 {
        let byte = self.input.pop_front().unwrap_or(0);
        if self.input_stalled && self.input.len() <= INPUT_CAPACITY / 2 {
            self.input_stalled = false;
            self.wake_due = true;
        }
        byte
    }

    fn write(&mut self, offset: u64, value: u8) {
        let [low, high] = &mut self.divisor;
        match offset {
            RBR_THR if self.lcr & LCR_DLAB != 0 => *low = value,
            IER if self.lcr & LCR_DLAB != 0 => *high = value,
            RBR_THR => self.transmit(value),
            IER => {
                // Enabling the transmitter-empty interrupt raises it at once, because the transmitter is empty.
                if value & !self.ier & IER_TRANSMITTER_EMPTY != 0 {
                    self.transmitter_empty = true;
                }
                self.ier = value & IER_MASK;
            }
            IIR_FCR => {
                self.fifo = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVER != 0 {
                    self.input.clear();
                    self.wake_due |= std::mem::take(&mut self.input_stalled);
                }
            }
            LCR => self.lcr = value,
            MCR => self.mcr = value & MCR_MASK,
            SCR => self.scr = value,
            _ => {}
        }
    }

    fn divisor_latched(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    /// The active interrupt causes that are enabled, as bits of IER.
    fn causes(&self) -> u8 {
        let received = u8::from(!self.input.is_empty()) * IER_RECEIVED;
        let empty = u8::from(self.transmitter_empty) * IER_TRANSMITTER_EMPTY;
        let line = u8::from(self.overrun) * IER_LINE_STATUS;
        (received | empty | line) & self.ier
    }

    /// Interrupt identification; reading it acknowledges the transmitter-empty cause if that is what it says.
    fn identify(&mut self) -> u8 {
        let causes = self.causes();
        let fifo = if self.fifo { IIR_FIFO_ENABLED } else { 0 };
        let source = if causes & IER_LINE_STATUS != 0 {
            IIR_LINE_STATUS
        } else if causes & IER_RECEIVED != 0 {
            IIR_RECEIVED
        } else if causes & IER_TRANSMITTER_EMPTY != 0 {
            self.transmitter_empty = false;
            IIR_TRANSMITTER_EMPTY
        } else {
            IIR_NONE
        };
        fifo | source
    }

    fn line_status(&mut self) -> u8 {
        let ready = u8::from(!self.input.is_empty()) * LSR_DATA_READY;
        let overrun = u8::from(std::mem::take(&mut self.overrun)) * LSR_OVERRUN;
        LSR_EMPTY | ready | overrun
    }

    /// Modem status; in loop-back mode the modem control outputs come back on it.
    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        // DTR → DSR, RTS → CTS, OUT1 → RI, OUT2 → DCD.
        let swapped = (self.mcr & 1) << 1 | (self.mcr & 2) >> 1 | self.mcr & 0b1100;
        swapped << 4
    }
}

impl BusDevice for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let [value] = data else {
            return data.fill(0xFF);
        };
        self.access(|registers| {
            let [low, high] = registers.divisor;
            *value = match offset {
                RBR_THR if registers.divisor_latched() => low,
                IER if registers.divisor_latched() => high,
                RBR_THR => registers.receive(),
                IER => registers.ier,
                IIR_FCR => registers.identify(),
                LCR => registers.lcr,
                MCR => registers.mcr,
                LSR => registers.line_status(),
                MSR => registers.modem_status(),
                SCR => registers.scr,
                _ => 0xFF,
            };
            registers.raised &= registers.causes();
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        self.access(|registers| {
            registers.write(offset, value);
            self.raise(registers);
        });
    }
}

#[cfg(test)]
mod tests;
