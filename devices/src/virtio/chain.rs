//! From a descriptor chain to byte ranges in guest RAM.
//!
//! A device must not care how a driver cuts a request into descriptors (virtio 1.3 §2.7.4), so a chain is gathered into
//! its readable and its writable bytes, and header, data and status are taken from those.

use std::collections::VecDeque;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::segments::Segments;
use crate::GuestRam;

/// A chain that cannot be followed to its end, so that nobody knows where its status byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChainError {
    /// A descriptor is outside the table or RAM, the chain is a cycle or longer than 2^32 bytes, or an indirect table is
    /// malformed.
    #[error("the descriptor chain breaks off")]
    Broken,
    /// More descriptors than the queue has (virtio 1.3 §2.7.5.3.1 forbids it).
    #[error("the descriptor chain has more than {limit} descriptors")]
    TooLong { limit: usize },
}

/// Data that is not in guest RAM, or too scattered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutsideRam;

/// Part of a descriptor's buffer; never empty.
#[derive(Debug, Clone, Copy)]
struct Piece {
    address: GuestAddress,
    length: u32,
}

/// The bytes of one chain. Reused from chain to chain, so that gathering allocates nothing.
#[derive(Default)]
pub(super) struct Buffers {
    readable: VecDeque<Piece>,
    writable: VecDeque<Piece>,
    /// A readable descriptor follows a writable one (virtio 1.3 §2.7.4.2 forbids it).
    out_of_order: bool,
}

impl Buffers {
    /// Reads the descriptors of `chain`, at most `limit` of them, each exactly once.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub fn gather(
        &mut self,
        chain: DescriptorChain<&GuestRam>,
        limit: usize,
    ) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        self.out_of_order = false;
        let mut complete = false;
        for (count, descriptor) in chain.enumerate() {
            if count == limit {
                return Err(ChainError::TooLong { limit });
            }
            complete = !descriptor.has_next();
            let pieces = if descriptor.is_write_only() {
                &mut self.writable
            } else {
                self.out_of_order |= !self.writable.is_empty();
                &mut self.readable
            };
            if descriptor.len() > 0 {
                pieces.push_back(Piece {
                    address: descriptor.addr(),
                    length: descriptor.len(),
                });
            }
        }
        // The iterator just stops at a descriptor that it cannot read: the one before it then still points on.
        if complete {
            Ok(())
        } else {
            Err(ChainError::Broken)
        }
    }

    /// True if readable and writable descriptors are mixed.
    pub fn out_of_order(&self) -> bool {
        self.out_of_order
    }

    /// Bytes that are left for the device to read.
    pub fn readable_bytes(&self) -> u64 {
        self.readable
            .iter()
            .map(|piece| u64::from(piece.length))
            .sum()
    }

    /// Bytes that are left for the device to write.
    pub fn writable_bytes(&self) -> u64 {
        self.writable
            .iter()
            .map(|piece| u64::from(piece.length))
            .sum()
    }

    /// Takes the last writable byte, where the status goes; `None` if there is none or it is not in RAM.
    pub fn take_status(&mut self, memory: &GuestRam) -> Option<GuestAddress> {
        let last = self.writable.back_mut()?;
        last.length = last.length.checked_sub(1)?;
        let address = last
            .address
            .0
            .checked_add(u64::from(last.length))
            .map(GuestAddress)?;
        if last.length == 0 {
            self.writable.pop_back();
        }
        memory.check_address(address)
    }

    /// Takes the first `N` readable bytes.
    ///
    /// # Errors
    /// There are fewer, or they are not in RAM.
    pub fn take_readable<const N: usize>(
        &mut self,
        memory: &GuestRam,
    ) -> Result<[u8; N], OutsideRam> {
        let mut bytes = [0; N];
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let piece = self.readable.front_mut().ok_or(OutsideRam)?;
            let length = piece
                .length
                .min(u32::try_from(rest.len()).unwrap_or(u32::MAX));
            let (now, later) = rest
                .split_at_mut_checked(length as usize)
                .ok_or(OutsideRam)?;
            memory
                .read_slice(now, piece.address)
                .map_err(|_| OutsideRam)?;
            rest = later;
            piece.length -= length;
            if piece.length == 0 {
                self.readable.pop_front();
            } else {
                let next = piece.address.0.checked_add(u64::from(length));
                piece.address = GuestAddress(next.ok_or(OutsideRam)?);
            }
        }
        Ok(bytes)
    }

    /// Where the writable bytes are: address and length of each piece, as the driver gave them.
    pub fn writable_pieces(&self) -> impl Iterator<Item = (GuestAddress, u32)> {
        self.writable
            .iter()
            .map(|piece| (piece.address, piece.length))
    }

    /// Adds the host addresses of all readable bytes that are left to `segments`.
    ///
    /// # Errors
    /// Some are not in RAM, or they are too many pieces for one system call.
    pub fn readable_segments(
        &self,
        memory: &GuestRam,
        segments: &mut Segments,
    ) -> Result<(), OutsideRam> {
        resolve(&self.readable, memory, segments)
    }

    /// Adds the host addresses of all writable bytes that are left to `segments`.
    ///
    /// # Errors
    /// Some are not in RAM, or they are too many pieces for one system call.
    pub fn writable_segments(
        &self,
        memory: &GuestRam,
        segments: &mut Segments,
    ) -> Result<(), OutsideRam> {
        resolve(&self.writable, memory, segments)
    }

    /// Writes `bytes` to the start of the writable bytes.
    ///
    /// # Errors
    /// There is too little room, or it is not in RAM.
    pub fn write(&self, memory: &GuestRam, bytes: &[u8]) -> Result<(), OutsideRam> {
        let mut rest = bytes;
        for piece in &self.writable {
            let (now, later) = rest
                .split_at_checked(piece.length as usize)
                .unwrap_or((rest, &[]));
            memory
                .write_slice(now, piece.address)
                .map_err(|_| OutsideRam)?;
            rest = later;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(OutsideRam)
        }
    }
}

fn resolve(
    pieces: &VecDeque<Piece>,
    memory: &GuestRam,
    segments: &mut Segments,
) -> Result<(), OutsideRam> {
    for piece in pieces {
        // More than one slice where the piece crosses from one region of RAM into the next.
        for slice in memory.get_slices(piece.address, piece.length as usize) {
            let slice = slice.map_err(|_| OutsideRam)?;
            segments.push(&slice).map_err(|_| OutsideRam)?;
        }
    }
    Ok(())
}
