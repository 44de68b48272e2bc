use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use io_uring::types::Fd;
use io_uring::{opcode, squeue, types};

use super::*;

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; 4096], 0).unwrap();
    file
}

fn complete(engine: &mut UringEngine) -> Completion {
    engine.submit();
    engine.wait();
    engine.next().unwrap()
}

/// Sends an entry past the engine's own interface; returns its error.
fn forbidden(engine: &mut UringEngine, entry: squeue::Entry) -> Option<i32> {
    // SAFETY: the entries of these tests point to memory that lives until the engine is dropped.
    unsafe { engine.push(0, entry) };
    complete(engine)
        .result
        .err()
        .and_then(|error| error.raw_os_error())
}

#[test]
fn the_ring_refuses_every_operation_that_a_drive_does_not_need() {
    let file = file();
    let mut engine = UringEngine::new(&file, 8).unwrap();
    let entries = [
        opcode::Nop::new().build(),
        opcode::OpenAt::new(Fd(libc::AT_FDCWD), c"/dev/null".as_ptr()).build(),
        opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
        opcode::Fadvise::new(types::Fixed(0), 512, libc::POSIX_FADV_DONTNEED).build(),
        opcode::Close::new(Fd(file.as_raw_fd())).build(),
        opcode::UnlinkAt::new(Fd(libc::AT_FDCWD), c"/nonexistent".as_ptr()).build(),
        opcode::Splice::new(types::Fixed(0), 0, types::Fixed(0), 0, 1).build(),
    ];
    for (i, entry) in entries.into_iter().enumerate() {
        assert_eq!(
            forbidden(&mut engine, entry),
            Some(libc::EACCES),
            "entry {i}"
        );
    }
}

#[test]
fn the_ring_refuses_every_file_but_its_own() {
    let (file, other) = (file(), file());
    let mut engine = UringEngine::new(&file, 8).unwrap();
    let mut buffer = [0; 512];
    let entry = opcode::Read::new(Fd(other.as_raw_fd()), buffer.as_mut_ptr(), 512).build();
    assert_eq!(forbidden(&mut engine, entry), Some(libc::EACCES));
    let entry = opcode::Read::new(types::Fixed(1), buffer.as_mut_ptr(), 512).build();
    assert_eq!(forbidden(&mut engine, entry), Some(libc::EBADF));
    assert_eq!(buffer, [0; 512]);
}

#[test]
fn the_ring_refuses_registrations() {
    let engine = UringEngine::new(&file(), 8).unwrap();
    assert!(
        engine
            .ring_for_tests()
            .submitter()
            .register_files(&[0])
            .is_err()
    );
    assert!(
        engine
            .ring_for_tests()
            .submitter()
            .register_personality()
            .is_err()
    );
}

#[test]
fn dropping_a_ring_waits_for_what_is_in_flight() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    let mut engine = UringEngine::new(&file, 8).unwrap();
    let mut buffer = [0_u8; 5];
    let segments = [libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    }];
    let operation = Operation::Read {
        segments: &segments,
        offset: u64::MAX,
    };
    // SAFETY: buffer and segments outlive the engine.
    unsafe { engine.start(3, operation) };
    assert!(!engine.submit());
    assert!(engine.next().is_none());
    let thread = std::thread::spawn(move || writer.write_all(b"there"));
    drop(engine);
    assert_eq!(&buffer, b"there");
    thread.join().unwrap().unwrap();
}

#[test]
fn both_engines_do_the_same() {
    for uring in [false, true] {
        let file = file();
        let mut engine: Box<dyn Engine> = if uring {
            Box::new(UringEngine::new(&file, 8).unwrap())
        } else {
            Box::new(SyncEngine::new(&file).unwrap())
        };
        let mut run = |tag, operation: Operation<'_>| {
            // SAFETY: every buffer of this test outlives the operation, which is waited for here.
            unsafe { engine.start(tag, operation) };
            engine.submit();
            engine.wait();
            let completion = engine.next().unwrap();
            assert_eq!(completion.tag, tag);
            completion.result.map_err(|error| error.raw_os_error())
        };
        let (mut a, mut b) = ([0_u8; 100], [0_u8; 4000]);
        let segments = [&mut a[..], &mut b[..]].map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        });
        // Four bytes more than the file has.
        assert_eq!(
            run(
                5,
                Operation::Read {
                    segments: &segments,
                    offset: 0
                }
            ),
            Ok(4096)
        );
        assert_eq!(
            run(
                5,
                Operation::Read {
                    segments: &segments,
                    offset: 4096
                }
            ),
            Ok(0)
        );
        for durable in [false, true] {
            let (all, one) = (&segments, &segments[..1]);
            assert_eq!(
                run(
                    6,
                    Operation::Write {
                        segments: all,
                        offset: 8192,
                        durable
                    }
                ),
                Ok(4100)
            );
            assert_eq!(
                run(
                    6,
                    Operation::Write {
                        segments: one,
                        offset: 100,
                        durable
                    }
                ),
                Ok(100)
            );
        }
        assert_eq!(run(7, Operation::Flush), Ok(0));
        assert_eq!(
            run(
                8,
                Operation::Punch {
                    offset: 8192,
                    length: 50
                }
            ),
            Ok(0)
        );
        assert_eq!(
            run(
                9,
                Operation::Zero {
                    offset: 8300,
                    length: 50
                }
            ),
            Ok(0)
        );
        assert_eq!(
            run(
                9,
                Operation::Zero {
                    offset: 0,
                    length: 0
                }
            ),
            Err(Some(libc::EINVAL))
        );
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).unwrap();
        let mut expected = vec![7; 4096];
        expected.resize(8192, 0);
        expected.extend(
            [
                vec![0; 50],
                vec![7; 58],
                vec![0; 50],
                vec![7; 3938],
                vec![0; 4],
            ]
            .concat(),
        );
        assert_eq!(bytes, expected);
        // Another file.
        let other = tempfile::tempfile().unwrap();
        engine.replace(&other).unwrap();
        let operation = Operation::Read {
            segments: &segments,
            offset: 0,
        };
        // SAFETY: as above.
        unsafe { engine.start(1, operation) };
        engine.submit();
        engine.wait();
        assert_eq!(engine.next().unwrap().result.unwrap(), 0);
    }
}
