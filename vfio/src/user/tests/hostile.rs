//! Against a server that misbehaves. Each script plays the server's side by hand.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::super::message::{Command, HEADER, Header};
use super::super::{Gone, UserError, UserFunction};
use super::memfd;
use crate::mapping::Mapping;
use crate::region::Region;
use crate::remote::{Interrupt, RemoteFunction};

/// Flags of a header.
const REPLY: u32 = 1;
const ERROR: u32 = 1 << 5;
const NO_REPLY: u32 = 1 << 4;

/// The server's end.
pub(super) struct Script(UnixStream);

impl Script {
    /// The next message; `None` at the end of the connection.
    pub(super) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut bytes = [0; HEADER];
        self.0.read_exact(&mut bytes).ok()?;
        let header = Header::parse(bytes);
        let mut body = vec![0; header.body()?];
        self.0.read_exact(&mut body).ok()?;
        Some((header, body))
    }

    pub(super) fn send(&mut self, header: Header, body: &[u8]) {
        let bytes = [&header.to_bytes(), body].concat();
        // The client may have given up already, which is what such a test is about.
        let _ = self.0.write_all(&bytes);
    }

    pub(super) fn send_with(&mut self, header: Header, body: &[u8], descriptors: &[RawFd]) {
        let bytes = [&header.to_bytes(), body].concat();
        self.0.send_with_fds(&[&bytes[..]], descriptors).unwrap();
    }

    /// Answers as one should, with nothing but BAR 0, configuration space and four vectors of MSI-X, until the first command of
    /// another kind, which is given back.
    fn behave(&mut self) -> (Header, Vec<u8>) {
        self.behave_with(&describe)
    }

    fn behave_with(&mut self, describe: &dyn Fn(&Header, &[u8]) -> Vec<u8>) -> (Header, Vec<u8>) {
        loop {
            let (header, body) = self.receive().expect("the client goes on");
            if header.command > Command::DeviceGetIrqInfo as u16 {
                return (header, body);
            }
            let answer = describe(&header, &body);
            self.send(reply(header, answer.len()), &answer);
        }
    }

    /// There is nothing more to read: the client has let go.
    fn left_alone(&mut self) {
        assert_eq!(self.0.read(&mut [0; 1]).unwrap_or(0), 0);
    }
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|one| one.to_le_bytes()).collect()
}

/// The right answer about the function.
pub(super) fn describe(header: &Header, body: &[u8]) -> Vec<u8> {
    let asked = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
    match header.command {
        1 => [
            &[0, 0, 1, 0],
            &br#"{"capabilities":{"max_msg_fds":2}}"#[..],
            &[0],
        ]
        .concat(),
        4 => numbers(&[16, 2, 9, 5]),
        5 => {
            let size = match asked(8) {
                0 => 4096,
                7 => 256,
                _ => 0,
            };
            numbers(&[32, 3, asked(8), 0, size, 0, 0, 0])
        }
        7 => numbers(&[16, 1, asked(8), if asked(8) == 2 { 4 } else { 0 }]),
        other => panic!("command {other}"),
    }
}

/// The header of the reply to `to` with `body` bytes after it.
pub(super) fn reply(to: Header, body: usize) -> Header {
    Header {
        size: (HEADER + body) as u32,
        flags: REPLY,
        ..to
    }
}

/// What answers a read of four bytes at 8 of BAR 0.
fn read_reply(data: &[u8; 4]) -> Vec<u8> {
    [&8_u64.to_le_bytes()[..], &numbers(&[0, 4]), data].concat()
}

/// Runs a script against a client that connects.
pub(super) fn against<T: Send + 'static>(
    script: impl FnOnce(Script) -> T + Send + 'static,
) -> (Result<UserFunction, UserError>, JoinHandle<T>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || script(Script(theirs)));
    (UserFunction::connect(ours), thread)
}

fn read(function: &UserFunction) -> io::Result<[u8; 4]> {
    let mut data = [0; 4];
    function.read(Region::Bar(0), 8, &mut data)?;
    Ok(data)
}

/// Why the function counts as gone.
#[track_caller]
fn gone(error: &io::Error) -> Gone {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<UserError>());
    match inner {
        Some(UserError::Gone(gone)) => *gone,
        _ => panic!("{error}"),
    }
}

/// Maps a part of BAR 0.
fn map(function: &dyn RemoteFunction, area: Range<u64>) -> io::Result<Mapping> {
    function.map(Region::Bar(0), area)
}

/// Waits until the other end is gone, at most `milliseconds`.
fn hung_up(lifeline: BorrowedFd<'_>, milliseconds: i32) -> bool {
    let mut entry = libc::pollfd {
        fd: lifeline.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: one entry, which the kernel writes to.
    unsafe { libc::poll(&mut entry, 1, milliseconds) == 1 && entry.revents & libc::POLLHUP != 0 }
}

/// A process that answers a read as `misbehave` does is gone, for the reason that is given back, and is not talked to again.
fn lost_by(misbehave: impl FnOnce(&mut Script, Header) + Send + 'static) -> Gone {
    let (function, thread) = against(|mut script| {
        let (header, _) = script.behave();
        misbehave(&mut script, header);
        script.left_alone();
    });
    let function = function.unwrap();
    let lifeline = function.lifeline().unwrap();
    assert!(!hung_up(lifeline, 0));
    let first = gone(&read(&function).unwrap_err());
    assert!(hung_up(lifeline, 0));
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    for later in [
        read(&function).unwrap_err(),
        function.reset().unwrap_err(),
        function.enable(Interrupt::Msix, &[&event]).unwrap_err(),
    ] {
        assert_eq!(gone(&later), first);
    }
    thread.join().unwrap();
    first
}

fn nonsense(misbehave: impl FnOnce(&mut Script, Header) + Send + 'static) {
    let gone = lost_by(misbehave);
    assert!(matches!(gone, Gone::Nonsense(..)), "{gone}");
}

#[test]
fn a_right_answer_is_taken() {
    let (function, thread) = against(|mut script| {
        let (header, body) = script.behave();
        assert_eq!(header.command, Command::RegionRead as u16);
        assert_eq!(body, read_reply(b"none")[..16]);
        script.send(reply(header, 20), &read_reply(b"good"));
    });
    assert_eq!(read(&function.unwrap()).unwrap(), *b"good");
    thread.join().unwrap();
}

#[test]
fn a_reply_to_another_message_ends_it() {
    nonsense(|script, header| {
        let id = header.id.wrapping_sub(1);
        script.send(reply(Header { id, ..header }, 20), &read_reply(b"evil"));
    });
    nonsense(|script, header| {
        let command = Command::RegionWrite as u16;
        script.send(
            reply(Header { command, ..header }, 20),
            &read_reply(b"evil"),
        );
    });
    nonsense(|script, header| {
        let flags = 2;
        script.send(Header { flags, ..header }, &[]);
    });
}

#[test]
fn a_reply_of_a_wrong_size_ends_it() {
    for size in [0, 15, 37, 1 << 20, u32::MAX] {
        nonsense(move |script, header| {
            script.send(
                Header {
                    size,
                    ..reply(header, 0)
                },
                &read_reply(b"evil"),
            );
        });
    }
    // Fewer bytes than an access's reply has, and than were asked for.
    for body in [0, 8, 16, 19] {
        nonsense(move |script, header| {
            script.send(reply(header, body), &read_reply(b"evil")[..body]);
        });
    }
}

#[test]
fn a_reply_about_another_access_ends_it() {
    for place in [0, 8, 12] {
        nonsense(move |script, header| {
            let mut body = read_reply(b"evil");
            body[place] ^= 1;
            script.send(reply(header, 20), &body);
        });
    }
}

#[test]
fn a_connection_that_ends_within_a_reply_ends_it() {
    for bytes in [0, 7, 16, 30] {
        let gone = lost_by(move |script, header| {
            let message = [&reply(header, 20).to_bytes()[..], &read_reply(b"evil")].concat();
            script.0.write_all(&message[..bytes]).unwrap();
            script.0.shutdown(std::net::Shutdown::Both).unwrap();
        });
        assert_eq!(gone, Gone::Closed);
    }
}

#[test]
fn silence_ends_it_for_all_who_wait() {
    let (function, thread) = against(|mut script| {
        script.behave();
        // Waits until the client has let go.
        script.left_alone();
    });
    let function = function.unwrap();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| read(&function).unwrap_err()))
            .collect();
        for one in waiting {
            let gone = gone(&one.join().unwrap());
            assert_eq!(gone, Gone::Silent(Command::RegionRead));
        }
    });
    thread.join().unwrap();
}

#[test]
fn an_answer_in_drops_is_silence() {
    let gone = lost_by(|script, header| {
        for byte in reply(header, 20).to_bytes() {
            if script.0.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(700));
        }
    });
    assert_eq!(gone, Gone::Silent(Command::RegionRead));
}

#[test]
fn a_server_that_does_not_read_is_silent() {
    let (function, thread) = against(|mut script| {
        // One version, one device, eight regions and five kinds of interrupts.
        for _ in 0..15 {
            let (header, body) = script.receive().unwrap();
            let answer = describe(&header, &body);
            script.send(reply(header, answer.len()), &answer);
        }
        assert!(hung_up(script.0.as_fd(), -1));
    });
    // More than the socket holds.
    let much = vec![0; 8 << 20];
    let error = function.unwrap().write(Region::Bar(0), 0, &much);
    let gone = gone(&error.unwrap_err());
    assert_eq!(gone, Gone::Silent(Command::RegionWrite));
    thread.join().unwrap();
}

#[test]
fn commands_of_the_server_are_refused_and_the_reply_is_still_found() {
    let (function, thread) = against(|mut script| {
        let (header, _) = script.behave();
        // DMA_READ, then DMA_WRITE with data, then one that wants no reply.
        let command = |id, command, size: usize, flags| Header {
            id,
            command,
            size: (HEADER + size) as u32,
            flags,
            error: 0,
        };
        script.send(command(77, 11, 16, 0), &[0; 16]);
        script.send(command(78, 12, 100_016, 0), &vec![1; 100_016]);
        script.send(command(79, 200, 0, NO_REPLY), &[]);
        script.send(reply(header, 20), &read_reply(b"good"));
        for (id, command) in [(77, 11), (78, 12)] {
            let (refusal, _) = script.receive().unwrap();
            assert_eq!((refusal.id, refusal.command), (id, command));
            assert_eq!(refusal.errno(), Some(libc::EOPNOTSUPP));
            assert!(refusal.is_reply());
        }
        let (header, _) = script.receive().unwrap();
        script.send(reply(header, 20), &read_reply(b"sync"));
    });
    let function = function.unwrap();
    assert_eq!(read(&function).unwrap(), *b"good");
    assert_eq!(read(&function).unwrap(), *b"sync");
    thread.join().unwrap();
}

#[test]
fn commands_of_the_server_without_end_or_bounds_end_it() {
    let gone = lost_by(|script, header| {
        let flood = Header {
            size: HEADER as u32,
            command: 200,
            flags: NO_REPLY,
            ..header
        };
        let many = flood.to_bytes().repeat(1000);
        while script.0.write_all(&many).is_ok() {}
    });
    assert_eq!(gone, Gone::Silent(Command::RegionRead));
    for size in [3, u32::MAX] {
        nonsense(move |script, header| {
            script.send(Header { size, ..header }, &[]);
        });
    }
}

#[test]
fn an_error_is_one_of_the_call_alone() {
    let (function, thread) = against(|mut script| {
        let (header, _) = script.behave();
        let refusal = |header, error| Header {
            flags: REPLY | ERROR,
            error,
            ..reply(header, 0)
        };
        script.send(refusal(header, libc::EPERM as u32), &[]);
        let (header, _) = script.receive().unwrap();
        script.send(refusal(header, u32::MAX), &[]);
        let (header, _) = script.receive().unwrap();
        script.send(reply(header, 20), &read_reply(b"good"));
    });
    let function = function.unwrap();
    let refused = read(&function).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    assert!(refused.to_string().contains("REGION_READ"), "{refused}");
    read(&function).unwrap_err();
    assert_eq!(read(&function).unwrap(), *b"good");
    thread.join().unwrap();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let (mut end, theirs) = io::pipe().unwrap();
    let (function, thread) = against(move |mut script| {
        let (header, _) = script.behave();
        let some = [theirs.as_raw_fd(); 3];
        script.send_with(reply(header, 20), &read_reply(b"good"), &some);
        // And some that come with the second half only.
        let (header, _) = script.receive().unwrap();
        script.send(reply(header, 20), &[]);
        script
            .0
            .send_with_fds(&[&read_reply(b"late")[..]], &some)
            .unwrap();
    });
    let function = function.unwrap();
    assert_eq!(read(&function).unwrap(), *b"good");
    assert_eq!(read(&function).unwrap(), *b"late");
    thread.join().unwrap();
    // The end comes once nobody has the other end any more.
    assert_eq!(end.read(&mut [0]).unwrap(), 0);
}

#[test]
fn more_descriptors_than_there_may_be_end_it_and_are_closed() {
    let (mut end, theirs) = io::pipe().unwrap();
    nonsense(move |script, header| {
        let many = [theirs.as_raw_fd(); 200];
        script.send_with(reply(header, 20), &read_reply(b"evil"), &many);
    });
    assert_eq!(end.read(&mut [0]).unwrap(), 0);
    // And in drops, each of which there is room for.
    let (mut end, theirs) = io::pipe().unwrap();
    nonsense(move |script, header| {
        for byte in reply(header, 20).to_bytes() {
            let some = [theirs.as_raw_fd(); 5];
            if script.0.send_with_fds(&[&[byte][..]], &some).is_err() {
                return;
            }
        }
    });
    assert_eq!(end.read(&mut [0]).unwrap(), 0);
}

#[test]
fn regions_whose_lists_lead_nowhere_are_not_mapped_elsewhere() {
    // Flags: read, write, mmap, capabilities.
    for (caps, list) in [
        (1_u32, vec![]),
        (31, vec![]),
        (32, vec![]),
        (u32::MAX, vec![1; 64]),
        // A sparse-mmap capability with an area outside of the region, and a count without areas.
        (
            32,
            numbers(&[0x1_0001, 0, u32::MAX, 0, 0x1000, 0, 0x1000, 0]),
        ),
        (32, numbers(&[0x1_0001, 32, u32::MAX, 0])),
        // One of another kind that leads to itself.
        (32, numbers(&[0x1_0002, 32])),
    ] {
        let told = list.clone();
        let (function, thread) = against(move |mut script| {
            let memory = memfd(4096);
            loop {
                let Some((header, body)) = script.receive() else {
                    return;
                };
                let mut answer = describe(&header, &body);
                if header.command == 5 && body[8] == 0 {
                    answer[4] = 15;
                    answer[12..16].copy_from_slice(&caps.to_le_bytes());
                    answer.extend(&told);
                }
                script.send_with(reply(header, answer.len()), &answer, &[memory.as_raw_fd()]);
            }
        });
        let function = function.unwrap();
        let bar0 = function.region(Region::Bar(0));
        for area in &bar0.mappable {
            assert!(area.end <= 4096, "{list:?}: {area:?}");
            map(&function, area.clone()).unwrap();
        }
        drop(function);
        thread.join().unwrap();
    }
}

#[test]
fn a_region_without_memory_is_not_mapped() {
    // Mappable, it says, but without a descriptor; and with one that is a pipe, or too small.
    let (_, pipe) = io::pipe().unwrap();
    let small = memfd(4095);
    for descriptor in [None, Some(pipe.as_raw_fd()), Some(small.as_raw_fd())] {
        let (function, thread) = against(move |mut script| {
            while let Some((header, body)) = script.receive() {
                let mut answer = describe(&header, &body);
                if header.command == 5 && body[8] == 0 {
                    answer[4] = 7;
                    let descriptors: Vec<RawFd> = descriptor.into_iter().collect();
                    script.send_with(reply(header, answer.len()), &answer, &descriptors);
                } else {
                    script.send(reply(header, answer.len()), &answer);
                }
            }
        });
        let function = function.unwrap();
        let mappable = !function.region(Region::Bar(0)).mappable.is_empty();
        assert_eq!(mappable, descriptor == Some(small.as_raw_fd()));
        map(&function, 0..4096).unwrap_err();
        drop(function);
        thread.join().unwrap();
    }
}

/// What a client says to a server whose answers are changed.
fn refused_with(change: impl Fn(u16, &mut Vec<u8>) + Send + 'static) -> UserError {
    let (function, thread) = against(move |mut script| {
        while let Some((header, body)) = script.receive() {
            let mut answer = describe(&header, &body);
            change(header.command, &mut answer);
            script.send(reply(header, answer.len()), &answer);
        }
    });
    let error = function.map(drop).unwrap_err();
    thread.join().unwrap();
    error
}

#[test]
fn a_server_that_cannot_serve_a_guest_is_refused() {
    let of = |wanted: u16, change: fn(&mut Vec<u8>)| {
        refused_with(move |command, answer| {
            if command == wanted {
                change(answer);
            }
        })
    };
    let version = of(1, |answer| answer[0] = 1);
    assert!(matches!(version, UserError::Version { major: 1, minor: 1 }));
    assert!(version.to_string().contains("1.1"), "{version}");
    let json = of(1, |answer| answer[4] = b'!');
    assert!(matches!(json, UserError::Capabilities(_)), "{json}");
    let empty = of(1, Vec::clear);
    assert!(matches!(empty, UserError::Gone(_)), "{empty}");
    let no_pci = of(4, |answer| answer[4] = 1);
    assert!(matches!(no_pci, UserError::NotPci(_)), "{no_pci}");
    let few = of(4, |answer| answer[8] = 7);
    assert!(matches!(few, UserError::NotPci(_)), "{few}");
    for command in [4, 5, 7] {
        let short = of(command, |answer| answer.truncate(11));
        assert!(matches!(short, UserError::Gone(_)), "{short}");
    }
}
