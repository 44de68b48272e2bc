//! What tenants do on a network, and those who answer them: echo, discard and chargen, as RFC 862, 863 and 864 number them.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, recv, send,
    setsockopt, socket, sockopt,
};

use crate::error::{Result, failed};
use crate::exhaust;

/// Who answers: of the addresses for benchmarks (RFC 2544, appendix C.2.2).
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

const ECHO: u16 = 7;
const DISCARD: u16 = 9;
const CHARGEN: u16 = 19;

/// As long as an answer is waited for: more than two lost packets cost (RFC 6298, 1 s and 2 s).
const PATIENCE: Duration = Duration::from_secs(5);
/// Sent and received at once in a flood.
const BLOCK: usize = 64 << 10;
/// Of a flood at a time.
const STREAMS: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    Send,
    Receive,
}

#[derive(Debug, clap::Args)]
pub struct Flood {
    direction: Direction,
}

/// A connection to one of the services outside.
fn call(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((OUTSIDE, port)), PATIENCE)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection that is kept. It counts with every kernel that tracks it; when its owner ends, it is reset and counts no more.
pub fn flow() -> io::Result<TcpStream> {
    let stream = call(DISCARD)?;
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &linger)?;
    Ok(stream)
}

/// A byte there and back, over and over.
pub fn round_trips(count: u64) -> io::Result<()> {
    let mut stream = call(ECHO)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [1];
    (0..count).try_for_each(|_| {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)
    })
}

/// Sends or receives as much as there is to be had, without end. Prints a line when it has begun.
///
/// # Errors
/// Nobody answers.
pub fn flood(args: &Flood) -> Result<()> {
    let port = match args.direction {
        Direction::Send => DISCARD,
        Direction::Receive => CHARGEN,
    };
    let streams: io::Result<Vec<_>> = (0..STREAMS).map(|_| call(port)).collect();
    let streams = streams.map_err(failed(format!("reach {OUTSIDE}")))?;
    println!();
    let work = |stream| match args.direction {
        Direction::Send => generate(stream),
        Direction::Receive => discard(stream),
    };
    thread::scope(|scope| {
        for stream in streams {
            scope.spawn(move || work(stream));
        }
    });
    Ok(())
}

/// Answers whoever calls, until it is killed. Prints a line when it can be called.
///
/// # Errors
/// The ports are taken, or it is not root's.
pub fn serve() -> Result<()> {
    exhaust::allow_most_files();
    let services: [(u16, fn(TcpStream)); 3] =
        [(ECHO, echo), (DISCARD, discard), (CHARGEN, generate)];
    let mut listeners = Vec::new();
    for (port, service) in services {
        let listener = TcpListener::bind((OUTSIDE, port));
        let listener = listener.map_err(failed(format!("listen at port {port}")))?;
        listeners.push(thread::spawn(move || accept(&listener, service)));
    }
    println!();
    for listener in listeners {
        let _ = listener.join();
    }
    Ok(())
}

/// Each caller gets a thread, if there is one more; else it is hung up on.
fn accept(listener: &TcpListener, service: fn(TcpStream)) {
    for stream in listener.incoming().flatten() {
        let small = thread::Builder::new().stack_size(256 << 10);
        let _ = small.spawn(move || service(stream));
    }
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut byte = [0];
    while matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(&byte).is_ok() {}
}

fn discard(mut stream: TcpStream) {
    let mut block = vec![0; BLOCK];
    while matches!(stream.read(&mut block), Ok(1..)) {}
}

fn generate(mut stream: TcpStream) {
    let block = vec![1; BLOCK];
    while stream.write_all(&block).is_ok() {}
}

/// ICMP echo requests, one after the other (RFC 792).
pub fn pings(count: u64) -> io::Result<()> {
    // As ping(8): without a permission where the kernel allows it (icmp(7)), else as root.
    let (socket, header) = match icmp(SockType::Datagram) {
        Ok(socket) => (socket, 0),
        Err(_) => (icmp(SockType::Raw)?, 20),
    };
    let [a, b, c, d] = OUTSIDE.octets();
    connect(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0))?;
    let patience = nix::sys::time::TimeVal::new(5, 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    for number in 0..count {
        let request = request(number as u16);
        send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answer = [0; 128];
        loop {
            let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            // A raw socket hears all that is said; this is an answer to this request.
            let answer = answer.get(header..length).unwrap_or_default();
            if answer.first() == Some(&0) && answer.get(6..) == request.get(6..) {
                break;
            }
        }
    }
    Ok(())
}

fn icmp(kind: SockType) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Inet, kind, flags, SockProtocol::Icmp)
}

/// An echo request of 64 bytes, as ping(8) sends. A datagram socket writes identifier and checksum anew.
fn request(number: u16) -> [u8; 64] {
    let mut packet = [0; 64];
    packet[0] = 8;
    packet[4..6].copy_from_slice(&(std::process::id() as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&number.to_be_bytes());
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// RFC 1071.
fn checksum(packet: &[u8; 64]) -> u16 {
    let words = packet.chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_sums_up_to_nothing_and_a_broken_one_does_not() {
        let mut packet = request(0x1234);
        assert_eq!(&packet[6..8], [0x12, 0x34]);
        assert_eq!(checksum(&packet), 0);
        packet[9] ^= 1;
        assert_ne!(checksum(&packet), 0);
    }

    #[test]
    fn an_echo_is_what_was_said_and_ends_with_its_caller() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || echo(listener.accept().unwrap().0));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"ab").unwrap();
        let mut said = [0; 2];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"ab");
        drop(stream);
        server.join().unwrap();
    }
}
