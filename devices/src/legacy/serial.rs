//! Between a serial port and the host: the worker's side of a [`Uart`], and what it can be connected to.

mod ends;

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::epoll::EventSet;

pub use ends::{Output, RawMode, SerialEnds};

use super::uart::{INPUT_CAPACITY, OUTPUT_CAPACITY, Uart};
use crate::worker::{Handler, Interest};

/// Bytes written at a time.
const CHUNK: usize = 4096;

/// Moves bytes between a [`Uart`] and its [`SerialEnds`], in a worker thread. Never blocks it.
pub struct SerialHandler {
    uart: Arc<Uart>,
    ends: SerialEnds,
    /// The output was full; it is watched until it has room.
    output_full: bool,
    /// The input is watched.
    input_watched: bool,
    /// Bytes that were dropped when this was last logged.
    reported: u64,
}

impl SerialHandler {
    /// Connects `uart` to `ends`.
    pub fn new(uart: Arc<Uart>, ends: SerialEnds) -> Self {
        Self {
            uart,
            ends,
            output_full: false,
            input_watched: false,
            reported: 0,
        }
    }

    /// Writes what output is left, waiting up to `patience` each time the output is full. For the end of the machine,
    /// after the handler was taken back from its worker.
    pub fn flush(&mut self, patience: Duration) {
        loop {
            let room = match self.write_output() {
                Progress::More => true,
                Progress::Full => self.ends.output.as_ref().is_some_and(|o| o.wait(patience)),
                Progress::Done | Progress::Broken(_) => false,
            };
            if !room {
                return;
            }
        }
    }

    /// Writes what output there is, at most a bufferful: a guest that writes as fast as the output takes it does not keep
    /// the worker here.
    fn write_output(&mut self) -> Progress {
        let mut chunk = [0; CHUNK];
        for _ in 0..OUTPUT_CAPACITY / CHUNK {
            let count = self.uart.peek_output(&mut chunk);
            let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else {
                return Progress::Done;
            };
            let written = match &mut self.ends.output {
                Some(output) => output.write(bytes),
                None => Ok(count),
            };
            match written {
                Ok(written) => self.uart.consume_output(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Full,
                Err(error) => return Progress::Broken(error),
            }
        }
        Progress::More
    }

    /// Writes what there is, and watches the output while it is full.
    fn drain(&mut self, interest: &Interest<'_>) {
        let progress = self.write_output();
        let full = matches!(progress, Progress::Full);
        if let Some(output) = &self.ends.output
            && full != self.output_full
        {
            let fd = output.as_raw_fd();
            let watched = match full {
                true => interest.add(fd, EventSet::OUT),
                false => interest.remove(fd),
            };
            if let Err(error) = watched {
                tracing::error!("cannot watch the serial output: {error}");
            }
        }
        self.output_full = full;
        match progress {
            Progress::More => self.uart.wake(),
            Progress::Broken(error) => {
                tracing::warn!("serial output is discarded from here on: {error}");
                self.ends.output = None;
                self.uart.wake();
            }
            Progress::Done => self.report_dropped(),
            Progress::Full => {}
        }
    }

    /// Logs once the output moves again how much was lost while it did not.
    fn report_dropped(&mut self) {
        let dropped = self.uart.dropped_output();
        let lost = dropped.saturating_sub(self.reported);
        if lost > 0 {
            tracing::warn!("{lost} bytes of serial output were dropped: its reader is too slow");
            self.reported = dropped;
        }
    }

    /// Reads input while the guest has room for it, and watches it only then.
    fn read_input(&mut self, readable: bool, interest: &Interest<'_>) {
        let room = self.uart.input_room();
        let Some(input) = &mut self.ends.input else {
            return;
        };
        if readable && room > 0 {
            let mut buffer = [0; INPUT_CAPACITY];
            let result = buffer
                .get_mut(..room.min(INPUT_CAPACITY))
                .map_or(Ok(0), |b| input.read(b));
            match result {
                Ok(0) => return self.close_input(interest),
                Ok(count) => {
                    self.uart.feed(buffer.get(..count).unwrap_or(&[]));
                }
                Err(error) if is_transient(&error) => {}
                Err(error) => {
                    tracing::warn!("serial input has ended: {error}");
                    return self.close_input(interest);
                }
            }
        }
        self.watch_input(interest);
    }

    fn watch_input(&mut self, interest: &Interest<'_>) {
        let wanted = self.uart.input_room() > 0;
        let Some(input) = self
            .ends
            .input
            .as_ref()
            .filter(|_| wanted != self.input_watched)
        else {
            return;
        };
        let fd = input.as_raw_fd();
        let result = match wanted {
            true => interest.add(fd, EventSet::IN),
            false => interest.remove(fd),
        };
        match result {
            Ok(()) => self.input_watched = wanted,
            Err(error) => {
                // A file or /dev/null: always readable, so nobody types there.
                tracing::debug!("serial input is not watched: {error}");
                self.ends.input = None;
            }
        }
    }

    fn close_input(&mut self, interest: &Interest<'_>) {
        if let Some(input) = self.ends.input.take()
            && self.input_watched
            && let Err(error) = interest.remove(input.as_raw_fd())
        {
            tracing::error!("cannot stop watching the serial input: {error}");
        }
        self.input_watched = false;
    }
}

/// How far the output was written.
enum Progress {
    /// All of it.
    Done,
    /// As much as is good at once.
    More,
    /// Until the output had no room.
    Full,
    /// The output takes nothing any more.
    Broken(io::Error),
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl Handler for SerialHandler {
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        self.output_full = false;
        self.input_watched = false;
        interest.add(self.uart.wake_event().as_raw_fd(), EventSet::IN)?;
        self.watch_input(interest);
        self.drain(interest);
        Ok(())
    }

    fn ready(&mut self, fd: RawFd, _events: EventSet, interest: &Interest<'_>) {
        if fd == self.uart.wake_event().as_raw_fd() {
            // Only ever cleared here; what it announces is looked at next.
            let _ = self.uart.wake_event().read();
            self.read_input(false, interest);
        } else if self
            .ends
            .input
            .as_ref()
            .is_some_and(|input| input.as_raw_fd() == fd)
        {
            self.read_input(true, interest);
        }
        self.drain(interest);
    }
}

#[cfg(test)]
mod tests;
