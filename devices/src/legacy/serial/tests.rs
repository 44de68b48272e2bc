use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use super::*;
use crate::bus::BusDevice;
use crate::legacy::tests::Line;
use crate::worker::{SharedWorker, ThreadKind};

fn port() -> Arc<Uart> {
    Arc::new(Uart::new(Arc::new(Line::default())).unwrap())
}

fn print(uart: &Uart, text: &[u8]) {
    for byte in text {
        uart.write(0, &[*byte]);
    }
}

/// Reads `count` bytes from the guest's side, waiting for them.
fn receive(uart: &Uart, count: usize) -> Vec<u8> {
    let mut received = Vec::new();
    while received.len() < count {
        let mut byte = [0];
        uart.read(5, &mut byte);
        if byte[0] & 1 == 0 {
            std::thread::yield_now();
            continue;
        }
        uart.read(0, &mut byte);
        received.push(byte[0]);
    }
    received
}

fn pipe() -> (File, File) {
    let mut ends = [-1; 2];
    // SAFETY: the array takes both descriptors.
    let result = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(result, 0);
    // SAFETY: both have just been opened and nobody else owns them.
    let owned = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let [reader, writer] = owned.map(File::from);
    (reader, writer)
}

fn worker() -> Arc<SharedWorker> {
    SharedWorker::spawn(ThreadKind::Slow, "test").unwrap()
}

#[test]
fn what_the_guest_prints_arrives_in_a_pipe_even_more_than_its_buffers_hold() {
    let (mut reader, writer) = pipe();
    let uart = port();
    let worker = worker();
    let _place = worker
        .add(SerialHandler::new(
            uart.clone(),
            SerialEnds::file(writer).unwrap(),
        ))
        .unwrap();
    let line = [b'x'; 1024];
    let mut seen = vec![0; 1024];
    for _ in 0..300 {
        print(&uart, &line);
        reader.read_exact(&mut seen).unwrap();
        assert_eq!(seen, line);
    }
    assert_eq!(uart.dropped_output(), 0);
}

#[test]
fn a_stuck_reader_stops_neither_the_guest_nor_the_worker() {
    let (mut reader, writer) = pipe();
    let (stuck, other) = (port(), port());
    let worker = worker();
    let _stuck = worker
        .add(SerialHandler::new(
            stuck.clone(),
            SerialEnds::file(writer).unwrap(),
        ))
        .unwrap();
    print(&stuck, &vec![b'x'; 1 << 20]);
    assert!(stuck.dropped_output() > 0);
    let (mut other_reader, other_writer) = pipe();
    let ends = SerialEnds::file(other_writer).unwrap();
    let _other = worker.add(SerialHandler::new(other.clone(), ends)).unwrap();
    print(&other, b"alive");
    let mut seen = [0; 5];
    other_reader.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"alive");
    // Once somebody reads, everything that was kept comes.
    let kept = (1 << 20) - usize::try_from(stuck.dropped_output()).unwrap();
    let mut all = vec![0; kept];
    reader.read_exact(&mut all).unwrap();
    assert!(all.iter().all(|&byte| byte == b'x'));
}

#[test]
fn a_reader_that_goes_away_leaves_the_port_working() {
    let (reader, writer) = pipe();
    drop(reader);
    let uart = port();
    let worker = worker();
    let place = worker
        .add(SerialHandler::new(
            uart.clone(),
            SerialEnds::file(writer).unwrap(),
        ))
        .unwrap();
    print(&uart, &[b'x'; 10_000]);
    let handler = place.remove().unwrap();
    let place = worker.add(handler).unwrap();
    print(&uart, b"more");
    while uart.peek_output(&mut [0]) > 0 {
        std::thread::yield_now();
    }
    drop(place);
}

#[test]
fn a_terminal_on_a_pty_reaches_the_guest_both_ways_without_echo() {
    let (ends, name) = SerialEnds::pty().unwrap();
    let mut terminal = File::options().read(true).write(true).open(&name).unwrap();
    let uart = port();
    let worker = worker();
    let place = worker.add(SerialHandler::new(uart.clone(), ends)).unwrap();
    let long: Vec<u8> = (0..2000u32)
        .map(|n| b'a' + u8::try_from(n % 26).unwrap())
        .collect();
    terminal.write_all(&long).unwrap();
    assert_eq!(
        receive(&uart, long.len()),
        long,
        "input waits for the guest and is complete"
    );
    print(&uart, b"login: \x03\r\n");
    let mut seen = [0; 10];
    terminal.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"login: \x03\r\n");
    // Nobody at the terminal: no event storm, and the next one finds the port alive.
    drop(terminal);
    let _place = worker.add(place.remove().unwrap()).unwrap();
    let mut terminal = File::options().read(true).write(true).open(&name).unwrap();
    terminal.write_all(b"z").unwrap();
    assert_eq!(receive(&uart, 1), b"z");
}

#[test]
fn a_regular_file_gets_all_output_when_flushed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let uart = port();
    let mut handler = SerialHandler::new(
        uart.clone(),
        SerialEnds::file(file.reopen().unwrap()).unwrap(),
    );
    print(&uart, &[b'y'; OUTPUT_CAPACITY]);
    handler.flush(Duration::ZERO);
    assert_eq!(
        std::fs::read(file.path()).unwrap(),
        vec![b'y'; OUTPUT_CAPACITY]
    );
}

#[test]
fn flushing_into_a_pipe_that_nobody_reads_gives_up() {
    let (_reader, writer) = pipe();
    let uart = port();
    let mut handler = SerialHandler::new(uart.clone(), SerialEnds::file(writer).unwrap());
    print(&uart, &[b'y'; OUTPUT_CAPACITY]);
    handler.flush(Duration::ZERO);
    print(&uart, &[b'y'; OUTPUT_CAPACITY]);
    handler.flush(Duration::ZERO);
    assert!(uart.peek_output(&mut [0]) > 0);
}

#[test]
fn input_that_ends_leaves_output_working() {
    let (input_reader, input_writer) = pipe();
    let (mut reader, writer) = pipe();
    let uart = port();
    let mut ends = SerialEnds::file(writer).unwrap();
    ends.input = Some(input_reader);
    let worker = worker();
    let _place = worker.add(SerialHandler::new(uart.clone(), ends)).unwrap();
    { input_writer }.write_all(b"last").unwrap();
    assert_eq!(receive(&uart, 4), b"last");
    print(&uart, b"ok");
    let mut seen = [0; 2];
    reader.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"ok");
}

#[test]
fn input_that_cannot_be_watched_counts_as_none() {
    let uart = port();
    let mut ends = SerialEnds::default();
    ends.input = Some(File::open("/dev/null").unwrap());
    let worker = worker();
    let place = worker.add(SerialHandler::new(uart, ends)).unwrap();
    assert!(place.remove().unwrap().ends.input.is_none());
}
