//! One stream as the client sees it: bounded queues of what arrived, credit for what may be sent, and the end.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Shared, parse_started};
use crate::{Channel, Error, ExitStatus, FileInfo, Frame, Kind, MAX_PAYLOAD, Result, WINDOW};

/// Credit is given back in steps of this many bytes, so that it costs one small frame per several data frames.
const CREDIT_STEP: u32 = WINDOW / 4;

/// How a stream ended.
#[derive(Debug, Clone)]
pub(super) enum End {
    Exited(ExitStatus),
    Done(Vec<u8>),
    Failed(Error),
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    shared: Arc<Shared>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    out: Incoming,
    err: Incoming,
    /// Bytes that may be sent on `In`.
    credit: u32,
    /// Bytes sent on `In`.
    sent: u64,
    /// The agent does not read `In` any more, or its end was sent.
    input_closed: bool,
    started: Option<u32>,
    file: Option<FileInfo>,
    connected: bool,
    end: Option<End>,
}

#[derive(Debug, Default)]
struct Incoming {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes read from the first chunk.
    read: usize,
    /// Bytes in `chunks` plus those read and not yet given back as credit: never more than the window.
    unreturned: u32,
    /// Bytes read and not yet given back.
    to_return: u32,
    ended: bool,
    /// Nobody reads; what arrives is dropped.
    discarded: bool,
}

impl Stream {
    pub(super) fn new(id: u32, shared: Arc<Shared>) -> Stream {
        let state = State {
            credit: WINDOW,
            ..State::default()
        };
        Stream {
            id,
            shared,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame in, on the reader thread.
    pub(super) fn receive(&self, frame: Frame) -> Result<()> {
        let mut state = self.lock();
        match frame.kind {
            Kind::Data => {
                let incoming = state.incoming(frame.channel);
                let length = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
                if incoming.ended || length > WINDOW.saturating_sub(incoming.unreturned) {
                    return Err(Error::Protocol("data beyond the window or the end"));
                }
                incoming.unreturned += length;
                if !incoming.discarded {
                    incoming.chunks.push_back(frame.payload);
                }
            }
            Kind::Eof if frame.channel == Channel::In => state.input_closed = true,
            Kind::Eof => state.incoming(frame.channel).ended = true,
            Kind::Credit => {
                let credit = state
                    .credit
                    .checked_add(frame.credit_bytes())
                    .filter(|credit| *credit <= WINDOW);
                state.credit = credit.ok_or(Error::Protocol("more credit than the window"))?;
            }
            Kind::Started => state.started = Some(parse_started(&frame)?.pid),
            Kind::Connected => state.connected = true,
            Kind::FileInfo => state.file = Some(parse(&frame)?),
            Kind::Exited => state.end = Some(End::Exited(parse(&frame)?)),
            Kind::Done => state.end = Some(End::Done(frame.payload)),
            Kind::Error => state.end = Some(End::Failed(Error::Remote(parse(&frame)?))),
            _ => return Err(Error::Protocol("unexpected kind of frame")),
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn end(&self, end: End) {
        self.lock().end.get_or_insert(end);
        self.changed.notify_all();
    }

    pub(super) fn send(&self, frame: &Frame) -> Result<()> {
        // After the end nobody listens; that is no failure of the caller's.
        if self.lock().end.is_some() {
            Ok(())
        } else {
            self.shared.send(frame)
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.lock().end.is_some()
    }

    pub(super) fn wait_end(&self) -> End {
        let mut state = self.lock();
        loop {
            match &state.end {
                Some(end) => return end.clone(),
                None => state = self.wait(state),
            }
        }
    }

    pub(super) fn wait_done(&self) -> Result<Vec<u8>> {
        match self.wait_end() {
            End::Done(body) => Ok(body),
            End::Failed(error) => Err(error),
            End::Exited(_) => Err(Error::Protocol(
                "an exit status for a request that is no command",
            )),
        }
    }

    pub(super) fn wait_started(&self) -> Result<u32> {
        self.wait_answer(|state| state.started)
    }

    pub(super) fn wait_file(&self) -> Result<FileInfo> {
        self.wait_answer(|state| state.file)
    }

    pub(super) fn wait_connected(&self) -> Result<()> {
        self.wait_answer(|state| state.connected.then_some(()))
    }

    fn wait_answer<T>(&self, answer: impl Fn(&State) -> Option<T>) -> Result<T> {
        let mut state = self.lock();
        loop {
            match (answer(&state), &state.end) {
                (Some(answer), _) => return Ok(answer),
                (None, Some(End::Failed(error))) => return Err(error.clone()),
                (None, Some(_)) => return Err(Error::Protocol("an end before the beginning")),
                (None, None) => state = self.wait(state),
            }
        }
    }

    /// Reads what arrived on `channel`; 0 at its end. `Err` if the connection failed before that end.
    pub(super) fn read(&self, channel: Channel, bytes: &mut [u8]) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut state = self.lock();
        loop {
            let incoming = state.incoming(channel);
            let count = incoming.take(bytes);
            if count > 0 {
                let credit = incoming.credit_due();
                let useful = credit > 0 && !incoming.ended && state.end.is_none();
                drop(state);
                if useful {
                    // If the connection is gone, the next read says so.
                    let _ = self.shared.send(&Frame::credit(self.id, channel, credit));
                }
                return Ok(count);
            }
            if incoming.ended || incoming.discarded {
                return Ok(0);
            }
            match &state.end {
                Some(End::Failed(error)) => return Err(error.clone()),
                Some(_) => return Ok(0),
                None => state = self.wait(state),
            }
        }
    }

    /// Nobody will read `channel` any more: a writer in the tenant shall notice.
    pub(super) fn discard(&self, channel: Channel) {
        let mut state = self.lock();
        let incoming = state.incoming(channel);
        incoming.chunks.clear();
        let first = !std::mem::replace(&mut incoming.discarded, true);
        if first && !incoming.ended && state.end.is_none() {
            drop(state);
            let _ = self.shared.send(&Frame::eof(self.id, channel));
        }
        self.changed.notify_all();
    }

    /// Sends bytes on `In`, waiting for credit; returns how many (at least 1), or None if nobody reads them.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<Option<usize>> {
        let mut state = self.lock();
        loop {
            match &state.end {
                Some(End::Failed(error @ Error::Lost(_))) => return Err(error.clone()),
                Some(_) => return Ok(None),
                None if state.input_closed => return Ok(None),
                None if state.credit > 0 => break,
                None => state = self.wait(state),
            }
        }
        let count = bytes.len().min(state.credit as usize).min(MAX_PAYLOAD);
        state.credit -= u32::try_from(count).unwrap_or(state.credit);
        state.sent += count as u64;
        drop(state);
        self.shared
            .send(&Frame::data(self.id, Channel::In, bytes[..count].to_vec()))?;
        Ok(Some(count))
    }

    /// Ends `In`.
    pub(super) fn close_input(&self) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.input_closed, true) || state.end.is_some() {
            return;
        }
        let sent = state.sent;
        drop(state);
        let _ = self.shared.send(&Frame::eof_counted(self.id, sent));
        self.changed.notify_all();
    }
}

impl State {
    fn incoming(&mut self, channel: Channel) -> &mut Incoming {
        if channel == Channel::Err {
            &mut self.err
        } else {
            &mut self.out
        }
    }
}

impl Incoming {
    fn take(&mut self, bytes: &mut [u8]) -> usize {
        let mut count = 0;
        while count < bytes.len() {
            let Some(chunk) = self.chunks.front() else {
                break;
            };
            let rest = &chunk[self.read..];
            let part = rest.len().min(bytes.len() - count);
            bytes[count..count + part].copy_from_slice(&rest[..part]);
            count += part;
            self.read += part;
            if self.read == chunk.len() {
                self.chunks.pop_front();
                self.read = 0;
            }
        }
        self.to_return += u32::try_from(count).unwrap_or(u32::MAX);
        count
    }

    fn credit_due(&mut self) -> u32 {
        if self.to_return < CREDIT_STEP {
            return 0;
        }
        self.unreturned -= self.to_return;
        std::mem::take(&mut self.to_return)
    }
}

fn parse<T: serde::de::DeserializeOwned>(frame: &Frame) -> Result<T> {
    frame
        .parse()
        .map_err(|_| Error::Protocol("an answer that cannot be read"))
}
