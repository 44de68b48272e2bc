//! The host's side of a network interface: a tap device.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
#[cfg(any(test, feature = "mock"))]
use std::sync::{Mutex, PoisonError};

use super::offload::HEADER_BYTES;

/// The part of `struct ifreq` (netdevice(7)) that TUNGETIFF fills in.
#[repr(C)]
#[derive(Default)]
struct InterfaceRequest {
    name: [u8; libc::IF_NAMESIZE],
    flags: libc::c_short,
    rest: [u64; 3],
}

/// Why a descriptor is no tap that a device can use.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("it is not a tap device: {0}")]
    NotTap(#[source] io::Error),
    #[error(
        "it is a tap device without IFF_NO_PI and IFF_VNET_HDR, or a tunnel; attach it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
    )]
    Flags,
    #[error("the kernel does not know its {name}: {source}; Linux 4.0 or newer is needed")]
    Ioctl {
        name: &'static str,
        source: io::Error,
    },
}

/// Why no frame was read or written.
#[derive(Debug)]
pub(super) enum TapFailure {
    /// Nothing to read, or no room.
    Busy,
    /// The frame is lost.
    Lost(io::Error),
}

/// A tap device that frames are read from and written to with their virtio-net header.
pub struct Tap {
    file: File,
    /// Segmentation of UDP is known (Linux 6.2).
    udp: bool,
    /// What was asked for, instead of asking the kernel: there is a socket behind it.
    #[cfg(any(test, feature = "mock"))]
    asked: Option<Mutex<Vec<libc::c_uint>>>,
}

impl Tap {
    /// Prepares the tap behind `file`, which is attached to it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR and does not block.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn new(file: File) -> Result<Self, TapError> {
        let mut request = InterfaceRequest::default();
        // SAFETY: TUNGETIFF writes a struct ifreq, which is no larger than `request`.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        check(result).map_err(TapError::NotTap)?;
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if libc::c_int::from(request.flags) & wanted != wanted {
            return Err(TapError::Flags);
        }
        let size = libc::c_int::try_from(HEADER_BYTES).unwrap_or(0);
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        let result =
            unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
        check(result).map_err(|source| TapError::Ioctl {
            name: "header size (TUNSETVNETHDRSZ)",
            source,
        })?;
        let mut tap = Self {
            file,
            udp: false,
            #[cfg(any(test, feature = "mock"))]
            asked: None,
        };
        let udp = libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6;
        tap.udp = tap.set_offloads(udp).is_ok();
        tap.set_offloads(0).map_err(|source| TapError::Ioctl {
            name: "offloads (TUNSETOFFLOAD)",
            source,
        })?;
        Ok(tap)
    }

    /// A socket that keeps messages apart, in place of a tap.
    #[cfg(any(test, feature = "mock"))]
    pub fn socket(file: File, udp: bool) -> Self {
        let asked = Some(Mutex::default());
        Self { file, udp, asked }
    }

    /// The offloads (TUN_F_*) that were asked for, one after the other.
    #[cfg(test)]
    pub fn asked(&self) -> Vec<libc::c_uint> {
        self.asked.as_ref().unwrap().lock().unwrap().clone()
    }

    /// Whether UDP can be segmented.
    pub fn udp(&self) -> bool {
        self.udp
    }

    /// Says which frames the reader understands (TUN_F_*), and drops those that were made for another one.
    ///
    /// # Errors
    /// The kernel does not know one of them.
    pub fn set_offloads(&self, offloads: libc::c_uint) -> io::Result<()> {
        #[cfg(any(test, feature = "mock"))]
        if let Some(asked) = &self.asked {
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.push(offloads);
            return Ok(());
        }
        let argument = libc::c_ulong::from(offloads);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, argument) })?;
        self.drop_waiting();
        Ok(())
    }

    /// Drops the frames that wait. It ends: more come only from who fills the queue all the time.
    fn drop_waiting(&self) {
        // What is longer is cut off.
        let mut header = [0_u8; HEADER_BYTES];
        let segment = libc::iovec {
            iov_base: header.as_mut_ptr().cast(),
            iov_len: header.len(),
        };
        for _ in 0..STALE_FRAMES {
            // SAFETY: the segment is `header`, which nobody looks at.
            if let Err(TapFailure::Busy) = unsafe { self.read(&[segment]) } {
                return;
            }
        }
    }

    /// Reads a frame into `segments`; what does not fit is lost without notice. Returns its length with header.
    ///
    /// # Safety
    /// The segments are mapped memory that nobody has references into.
    pub(super) unsafe fn read(&self, segments: &[libc::iovec]) -> Result<usize, TapFailure> {
        let count = libc::c_int::try_from(segments.len()).unwrap_or(0);
        // SAFETY: the caller's promise; pointer and count describe `segments`.
        retry(|| unsafe { libc::readv(self.file.as_raw_fd(), segments.as_ptr(), count) })
    }

    /// Writes the frame in `segments`, all of it.
    ///
    /// # Safety
    /// As for [`read`](Self::read).
    pub(super) unsafe fn write(&self, segments: &[libc::iovec]) -> Result<usize, TapFailure> {
        let count = libc::c_int::try_from(segments.len()).unwrap_or(0);
        // SAFETY: the caller's promise; pointer and count describe `segments`.
        retry(|| unsafe { libc::writev(self.file.as_raw_fd(), segments.as_ptr(), count) })
    }
}

/// More frames than a tap's queue holds (the default is 1000).
const STALE_FRAMES: usize = 4096;

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> Result<usize, TapFailure> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Err(TapFailure::Busy),
            _ => return Err(TapFailure::Lost(error)),
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
