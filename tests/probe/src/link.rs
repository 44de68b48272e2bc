//! One interface, frame by frame (packet(7)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;

use crate::addresses::{Mac, index};
use crate::options::left;
use crate::{Result, misuse, refused};

/// Longer than any frame, also one that segmentation offload left whole.
const LONGEST: usize = 80 * 1024;

/// All frames of one interface.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    address: libc::sockaddr_ll,
}

impl Link {
    /// Opens the interface of that name.
    ///
    /// # Errors
    /// There is none, or no permission (CAP_NET_RAW).
    pub fn open(interface: &str) -> Result<Self> {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: all zeros is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = index(interface)?.cast_signed();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // Without a protocol nothing arrives before it is bound to the one interface.
        // SAFETY: a plain system call.
        let socket = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })
            .map_err(misuse("cannot open a packet socket (only root can)"))?;
        // SAFETY: just opened, and owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: the address lives until the call returns, and its length is right.
        Errno::result(unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LENGTH)
        })
        .map_err(misuse("cannot open the interface"))?;
        Ok(Self { socket, address })
    }

    /// The interface's own Ethernet address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mac(&self) -> Result<Mac> {
        let mut own = self.address;
        let mut length = LENGTH;
        // SAFETY: both pointers live until the call returns; the kernel writes at most `length` bytes.
        Errno::result(unsafe {
            libc::getsockname(
                self.socket.as_raw_fd(),
                (&raw mut own).cast(),
                &raw mut length,
            )
        })
        .map_err(misuse("cannot ask for the interface's address"))?;
        let [a, b, c, d, e, f, ..] = own.sll_addr;
        Ok([a, b, c, d, e, f])
    }

    /// Sends a frame as it is.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the frame lives until the call returns.
        Errno::result(unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        })
        .map_err(refused("cannot send a frame"))?;
        Ok(())
    }

    /// The next frame that somebody else sent; none when the time is up.
    ///
    /// # Errors
    /// The interface has gone.
    pub fn next(&self, deadline: Instant, buffer: &mut Vec<u8>) -> Result<Option<()>> {
        while let Some(left) = left(deadline) {
            let timeout = nix::sys::time::TimeVal::new(
                i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                i64::from(left.subsec_micros()).max(1),
            );
            nix::sys::socket::setsockopt(
                &self.socket,
                nix::sys::socket::sockopt::ReceiveTimeout,
                &timeout,
            )
            .map_err(refused("cannot wait for frames"))?;
            buffer.resize(LONGEST, 0);
            match self.receive(buffer) {
                Ok((length, kind)) if kind != libc::PACKET_OUTGOING => {
                    buffer.truncate(length);
                    return Ok(Some(()));
                }
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    _ => return Err(refused("cannot receive frames")(error)),
                },
            }
        }
        Ok(None)
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, u8)> {
        let mut from = self.address;
        let mut length = LENGTH;
        // SAFETY: all pointers live until the call returns; the kernel writes at most the two lengths.
        let received = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        let received = Errno::result(received)?;
        Ok((received.unsigned_abs(), from.sll_pkttype))
    }
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
