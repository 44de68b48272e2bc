//! TCP and UDP, from both sides.

use std::io::{ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::background::ready;
use crate::options::{Options, left};
use crate::{Failure, Result, misuse, refused};

/// What a client says.
const WORD: &[u8] = b"fief-probe\n";
/// Between two datagrams: the first may be lost while a neighbour is looked for.
const AGAIN: Duration = Duration::from_millis(500);
/// A datagram that every path takes whole.
const DATAGRAM: usize = 1400;

/// Where a server listens: everywhere, also where there is no IPv6.
fn places(port: u16, options: &Options) -> Vec<SocketAddr> {
    let everywhere = [
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
        Ipv4Addr::UNSPECIFIED.into(),
    ];
    let places = options.bind.map_or(everywhere.to_vec(), |bind| vec![bind]);
    places
        .into_iter()
        .map(|address| SocketAddr::new(address, port))
        .collect()
}

pub fn listen(port: u16, options: &Options) -> Result<TcpListener> {
    TcpListener::bind(&*places(port, options)).map_err(misuse("cannot listen"))
}

/// Gives everybody back what they send; a thread a connection.
pub fn tcp_serve(port: u16, options: &Options) -> Result<()> {
    let listener = listen(port, options)?;
    let end = options.end();
    ready();
    if let Some(end) = end {
        end_at(end);
    }
    for stream in listener.incoming().flatten() {
        println!("connection from {}", peer(&stream));
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut &stream, &mut &stream);
        });
    }
    Ok(())
}

/// Ends this program, as asked for, while a thread of it serves.
fn end_at(end: Instant) {
    std::thread::spawn(move || {
        while let Some(left) = left(end) {
            std::thread::sleep(left);
        }
        std::process::exit(0);
    });
}

fn peer(stream: &TcpStream) -> String {
    stream
        .peer_addr()
        .map_or_else(|error| error.to_string(), |peer| peer.to_string())
}

pub fn udp_serve(port: u16, options: &Options) -> Result<()> {
    let socket = UdpSocket::bind(&*places(port, options)).map_err(misuse("cannot listen"))?;
    let end = options.end();
    ready();
    if let Some(end) = end {
        end_at(end);
    }
    let mut buffer = [0; 64 * 1024];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                println!("datagram from {from}");
                let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
            }
            // What came back for an answer to someone who has gone.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(refused("cannot receive")(error)),
        }
    }
}

/// Connects until the deadline.
pub fn connect(target: SocketAddr, options: &Options) -> Result<TcpStream> {
    let timeout = left(options.deadline())
        .ok_or_else(|| Failure::Misuse("--timeout 0 leaves no time".into()))?;
    let refused = refused("cannot connect");
    let Some(source) = options.bind else {
        return TcpStream::connect_timeout(&target, timeout).map_err(refused);
    };
    connect_from(source, target, timeout).map_err(refused)
}

fn connect_from(
    source: IpAddr,
    target: SocketAddr,
    timeout: Duration,
) -> std::io::Result<TcpStream> {
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};
    use std::os::fd::AsRawFd;
    let family = if target.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(source, 0)),
    )?;
    // A connection attempt obeys the time-out for sending (socket(7)).
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(timeout))?;
    socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(target))?;
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// Connects and waits for an answer: a forwarder in between may take a connection that leads nowhere.
pub fn tcp(target: SocketAddr, options: &Options) -> Result<()> {
    let deadline = options.deadline();
    let mut stream = connect(target, options)?;
    if !options.connect_only {
        let failed = "connected, but no answer";
        stream.write_all(WORD).map_err(refused(failed))?;
        stream
            .set_read_timeout(left(deadline).or(Some(Duration::from_millis(1))))
            .map_err(refused("cannot wait"))?;
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).map_err(refused(failed))?;
        if length == 0 {
            return Err(Failure::Refused(format!("{failed}: it was closed")));
        }
    }
    println!("answer from {target}");
    let _ = stream.shutdown(Shutdown::Both);
    Ok(())
}

fn udp_socket(target: SocketAddr, options: &Options) -> Result<UdpSocket> {
    let any: IpAddr = if target.is_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    UdpSocket::bind((options.bind.unwrap_or(any), 0)).map_err(misuse("cannot use that source"))
}

pub fn udp(target: SocketAddr, options: &Options) -> Result<()> {
    let socket = udp_socket(target, options)?;
    // Connected, so that an ICMP error is heard.
    socket.connect(target).map_err(refused("cannot send"))?;
    answered(options, &target.to_string(), &socket, || socket.send(WORD))
}

pub fn broadcast(interface: &str, port: u16, options: &Options) -> Result<()> {
    crate::addresses::index(interface)?;
    let everybody = SocketAddr::from((Ipv4Addr::BROADCAST, port));
    let socket = udp_socket(everybody, options)?;
    let name = std::ffi::OsString::from(interface);
    setsockopt(&socket, sockopt::BindToDevice, &name)
        .map_err(misuse("cannot use the interface (only root can)"))?;
    socket
        .set_broadcast(true)
        .map_err(misuse("cannot broadcast"))?;
    answered(options, interface, &socket, || {
        socket.send_to(WORD, everybody)
    })
}

/// Sends again and again until an answer comes; an error is an answer too, of another kind.
fn answered(
    options: &Options,
    whom: &str,
    socket: &UdpSocket,
    send: impl Fn() -> std::io::Result<usize>,
) -> Result<()> {
    let deadline = options.deadline();
    let failed = || refused(whom);
    while let Some(rest) = left(deadline) {
        send().map_err(failed())?;
        let until = Instant::now() + AGAIN.min(rest);
        while let Some(rest) = left(until) {
            socket.set_read_timeout(Some(rest)).map_err(failed())?;
            match socket.recv_from(&mut [0; 64]) {
                Ok((_, from)) => {
                    println!("answer from {from}");
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(failed()(error)),
            }
        }
    }
    Err(Failure::Refused(format!("{whom}: no answer")))
}

/// Sends datagrams as fast as they go, and counts them.
pub fn flood(target: SocketAddr, seconds: u64, options: &Options) -> Result<()> {
    let socket = udp_socket(target, options)?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut sent, mut not_sent) = (0_u64, 0_u64);
    ready();
    while left(end).is_some() {
        // Between two looks at the clock, which cost more than sending.
        for _ in 0..64 {
            match socket.send_to(&[0x55; DATAGRAM], target) {
                Ok(_) => sent += 1,
                Err(_) => not_sent += 1,
            }
        }
    }
    println!(
        "sent {sent} datagrams, {} bytes; {not_sent} not sent",
        sent * DATAGRAM as u64
    );
    if sent == 0 {
        return Err(Failure::Refused("nothing could be sent".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn options() -> Options {
        Options {
            timeout: Some(Duration::from_secs(60)),
            ..Options::default()
        }
    }

    /// A port that was free a moment ago.
    fn free_port() -> u16 {
        let listener = TcpListener::bind((HERE, 0)).unwrap();
        listener.local_addr().unwrap().port()
    }

    #[test]
    fn tcp_works_with_an_answer_and_not_without() {
        let listener = TcpListener::bind((HERE, 0)).unwrap();
        let target = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let answer = |listener: &TcpListener| {
                let (stream, _) = listener.accept().unwrap();
                std::io::copy(&mut &stream, &mut &stream).unwrap();
            };
            answer(&listener);
            // Taken and closed without a word.
            drop(listener.accept());
            answer(&listener);
        });
        tcp(target, &options()).unwrap();
        assert!(matches!(tcp(target, &options()), Err(Failure::Refused(_))));
        let from = Options {
            bind: Some(HERE),
            ..options()
        };
        tcp(target, &from).unwrap();
        let nobody = SocketAddr::new(HERE, free_port());
        assert!(matches!(tcp(nobody, &options()), Err(Failure::Refused(_))));
    }

    #[test]
    fn udp_works_with_an_answer_and_an_error_is_a_refusal() {
        let server = UdpSocket::bind((HERE, 0)).unwrap();
        let target = server.local_addr().unwrap();
        std::thread::spawn(move || {
            let (length, from) = server.recv_from(&mut [0; 64]).unwrap();
            // The first datagram is lost.
            assert_eq!(length, WORD.len());
            let (_, again) = server.recv_from(&mut [0; 64]).unwrap();
            assert_eq!(from, again);
            server.send_to(b"x", from).unwrap();
        });
        udp(target, &options()).unwrap();
        // Nobody there: the kernel says so at once, which is not the time-out.
        let nobody = SocketAddr::new(HERE, free_port());
        assert!(matches!(udp(nobody, &options()), Err(Failure::Refused(_))));
    }
}
