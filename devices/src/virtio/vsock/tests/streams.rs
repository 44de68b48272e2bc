use std::hash::{DefaultHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::credit::BUF_ALLOC;
use super::super::muxer::MAX_HANDSHAKES;
use super::super::packet::{Header, op, shutdown};
use super::guest::*;
use crate::fakes::Random;
use crate::virtio::VirtioDevice;

/// Writes `count` pseudo-random bytes and returns their hash.
fn write_stream(target: &mut impl Write, seed: u64, count: usize) -> u64 {
    let (mut random, mut hasher) = (Random::new(seed), DefaultHasher::new());
    let mut left = count;
    while left > 0 {
        let chunk: Vec<u8> = (0..left.min(1 << 16).div_ceil(8))
            .flat_map(|_| random.next().to_le_bytes())
            .collect();
        let chunk = &chunk[..chunk.len().min(left)];
        target.write_all(chunk).unwrap();
        chunk.iter().for_each(|&byte| hasher.write_u8(byte));
        left -= chunk.len();
    }
    hasher.finish()
}

/// Reads to the end: count and hash.
fn read_stream(source: &mut impl Read) -> (usize, u64) {
    let (mut count, mut hasher) = (0, DefaultHasher::new());
    let mut buffer = vec![0; 1 << 16];
    loop {
        match source.read(&mut buffer).unwrap() {
            0 => return (count, hasher.finish()),
            some => {
                buffer[..some]
                    .iter()
                    .for_each(|&byte| hasher.write_u8(byte));
                count += some;
            }
        }
    }
}

/// Both directions at once, as a guest with `credit` bytes of buffer in `buffer`-byte rx buffers does it.
fn two_ways(event_idx: bool, total: usize, credit: u32, buffer: u32) {
    let mut guest = Guest::with(Setup {
        event_idx,
        rx_buffer_bytes: buffer,
        ..Setup::default()
    });
    let (stream, key) = guest.accept(1024);
    guest.sockets.get_mut(&key).unwrap().buf_alloc = credit;
    // Only now may the device send: it was told of more, but nobody has written yet.
    guest.say(op::CREDIT_UPDATE, key);
    let mut writing = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let hash = write_stream(&mut writing, 1, total);
        writing.shutdown(Shutdown::Write).unwrap();
        hash
    });
    let mut reading = stream;
    let reader = std::thread::spawn(move || read_stream(&mut reading));

    let mut source = Vec::new();
    let sent_hash = write_stream(&mut source, 2, total);
    let (mut sent, mut ended, mut told) = (0, false, 0);
    let (mut received, mut hasher) = (0, DefaultHasher::new());
    while !ended || sent < total {
        let socket = guest.sockets[&key];
        let chunk = socket.credit().min(total - sent).min(50_000);
        let packet = match chunk {
            0 => Some(guest.receive()),
            _ => {
                guest.data(key, &source[sent..sent + chunk]);
                sent += chunk;
                guest.try_receive()
            }
        };
        let Some((header, payload)) = packet else {
            continue;
        };
        match header.op {
            op::RW => {
                received += payload.len();
                payload.iter().for_each(|&byte| hasher.write_u8(byte));
                // Now and then it tells of new room, otherwise it waits to be asked.
                let fwd_cnt = guest.sockets[&key].fwd_cnt;
                if received % 3 == 0 && fwd_cnt.wrapping_sub(told) > credit / 2 {
                    told = fwd_cnt;
                    guest.say(op::CREDIT_UPDATE, key);
                }
            }
            op::CREDIT_REQUEST => guest.say(op::CREDIT_UPDATE, key),
            op::CREDIT_UPDATE => {}
            op::SHUTDOWN => {
                assert_eq!(header.flags, shutdown::SEND);
                ended = true;
            }
            other => panic!("operation {other}"),
        }
    }
    guest.say_with(op::SHUTDOWN, key, shutdown::SEND);
    assert_eq!((received, hasher.finish()), (total, writer.join().unwrap()));
    assert_eq!(reader.join().unwrap(), (total, sent_hash));
    let metrics = guest.device.metrics();
    assert_eq!(metrics.to_guest_bytes, total as u64);
    assert_eq!(metrics.from_guest_bytes, total as u64);
    assert_eq!(metrics.malformed, 0);
}

#[test]
fn sixty_four_mebibytes_go_both_ways_under_small_credit() {
    two_ways(true, 64 << 20, 10_000, 4096);
}

#[test]
fn streams_need_no_event_idx_and_work_with_any_size_of_buffers() {
    two_ways(false, 4 << 20, 10_000, 4096);
    two_ways(true, 64 << 10, 1, 60);
    two_ways(true, 4 << 20, u32::MAX, 45);
    two_ways(true, 16 << 20, 1 << 20, 65_536);
}

#[test]
fn packets_are_as_large_as_the_buffer() {
    let mut guest = Guest::with(Setup {
        rx_buffers: 4,
        rx_buffer_bytes: 20_000,
        ..Setup::default()
    });
    let (mut stream, key) = guest.accept(1);
    guest.refills = false;
    let bytes: Vec<u8> = (0..50_000_u32).map(|i| i as u8).collect();
    // In one piece: the socket holds it all before the device looks.
    let queues = guest.device.suspend();
    stream.write_all(&bytes).unwrap();
    guest.activate_with(queues);
    let mut read = Vec::new();
    for expected in [19_956, 19_956, 10_088] {
        let (header, payload) = guest.receive();
        assert_eq!((header.op, header.len), (op::RW, expected));
        read.extend(payload);
    }
    assert_eq!(read, bytes);
    let _ = key;
}

#[test]
fn without_rx_buffers_nothing_is_lost_and_the_other_direction_goes_on() {
    let mut guest = Guest::with(Setup {
        rx_buffers: 4,
        ..Setup::default()
    });
    let listener = guest.listen(80);
    let (mut stream, key) = guest.accept(1);
    let mut other = guest.connect(&listener, (80, 5));
    guest.refills = false;
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i / 7) as u8).collect();
    let mut writing = stream.try_clone().unwrap();
    let written = bytes.clone();
    let writer = std::thread::spawn(move || writing.write_all(&written).unwrap());
    let first = guest.expect_data(key, 4 * (4096 - 44));
    writer.join().unwrap();
    // The queue is empty. Data to the host flows all the same, up to the credit.
    guest.data(key, b"still here");
    guest.data((80, 5), b"here too");
    let mut text = [0; 10];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"still here");
    other.read_exact(&mut text[..8]).unwrap();
    assert_eq!(&text[..8], b"here too");
    assert_eq!(guest.try_receive(), None);
    guest.refills = true;
    guest.offer(&[0, 1, 2, 3]);
    let rest = guest.expect_data(key, bytes.len() - first.len());
    assert_eq!([first, rest].concat(), bytes);
}

#[test]
fn without_credit_the_guest_is_asked_once_and_nothing_is_sent() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    guest.sockets.get_mut(&key).unwrap().buf_alloc = 10;
    guest.say(op::CREDIT_UPDATE, key);
    guest.reads_at_once = false;
    stream.write_all(&[7; 25]).unwrap();
    assert_eq!(guest.expect_data(key, 10), [7; 10]);
    guest.expect(op::CREDIT_REQUEST, key);
    // Still nothing: it is not asked again.
    guest.say(op::CREDIT_UPDATE, key);
    let (mut other, other_key) = guest.accept(2);
    other.write_all(b"another").unwrap();
    assert_eq!(guest.expect_data(other_key, 7), b"another");
    assert_eq!(guest.try_receive(), None);
    guest.sockets.get_mut(&key).unwrap().fwd_cnt = 10;
    guest.say(op::CREDIT_UPDATE, key);
    assert_eq!(guest.expect_data(key, 10), [7; 10]);
    guest.expect(op::CREDIT_REQUEST, key);
    guest.sockets.get_mut(&key).unwrap().fwd_cnt = 20;
    guest.say(op::CREDIT_UPDATE, key);
    assert_eq!(guest.expect_data(key, 5), [7; 5]);
}

#[test]
fn a_guest_that_asks_for_credit_gets_an_answer() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    guest.data(key, &[1; 1000]);
    stream.read_exact(&mut [0; 1000]).unwrap();
    guest.say(op::CREDIT_REQUEST, key);
    let header = guest.expect(op::CREDIT_UPDATE, key);
    assert_eq!((header.buf_alloc, header.fwd_cnt), (BUF_ALLOC, 1000));
}

/// Sends until the host's socket is full and the guest has no credit left: how many bytes.
fn fill_up(guest: &mut Guest, key: (u32, u32)) -> usize {
    let mut total = 0;
    loop {
        // Whatever the device says now, it says before the answer to this.
        guest.say(op::CREDIT_REQUEST, key);
        let (header, _) = guest.receive();
        assert_eq!(header.op, op::CREDIT_UPDATE);
        let credit = guest.sockets[&key].credit();
        if credit == 0 {
            return total;
        }
        let chunk: Vec<u8> = (total..total + credit.min(10_000)).map(pattern).collect();
        guest.data(key, &chunk);
        total += chunk.len();
        while let Some((header, _)) = guest.try_receive() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
        }
    }
}

fn pattern(i: usize) -> u8 {
    (i ^ (i >> 8) ^ (i >> 16)) as u8
}

#[test]
fn a_host_program_that_does_not_read_stalls_its_own_connection_only() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    let total = fill_up(&mut guest, key);
    assert!(total > BUF_ALLOC as usize);
    guest.assert_serves();
    // It reads at last: all is there, and the guest hears that there is room.
    let mut bytes = vec![0; total];
    stream.read_exact(&mut bytes).unwrap();
    assert!(
        bytes
            .iter()
            .enumerate()
            .all(|(i, &byte)| byte == pattern(i))
    );
    guest.expect(op::CREDIT_UPDATE, key);
    assert!(guest.sockets[&key].credit() >= BUF_ALLOC as usize / 2);
    guest.data(key, b"on we go");
    stream.read_exact(&mut bytes[..8]).unwrap();
    assert_eq!(&bytes[..8], b"on we go");
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    fill_up(&mut guest, key);
    guest.data(key, b"!");
    guest.expect(op::RST, key);
    // What came before was within the credit.
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    assert!(!bytes.contains(&b'!') || bytes.len() > 1);
    // In one packet.
    let (mut stream, key) = guest.accept(1);
    guest.data(key, &vec![0; BUF_ALLOC as usize + 1]);
    guest.expect(op::RST, key);
    assert_eof(&mut stream);
    guest.assert_serves();
}

#[test]
fn the_host_ends_its_direction_and_the_guest_may_go_on() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect_data(key, 8), b"question");
    assert_eq!(guest.expect(op::SHUTDOWN, key).flags, shutdown::SEND);
    guest.data(key, b"answer");
    let mut text = [0; 6];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"answer");
    guest.say_with(op::SHUTDOWN, key, shutdown::SEND);
    assert_eof(&mut stream);
    // Nothing can flow any more.
    assert_eq!(guest.expect(op::SHUTDOWN, key).flags, shutdown::BOTH);
    guest.say(op::RST, key);
    guest.assert_serves();
}

#[test]
fn the_guest_ends_its_direction_and_the_host_may_go_on() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    guest.data(key, b"question");
    guest.say_with(op::SHUTDOWN, key, shutdown::SEND);
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"question");
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.expect_data(key, 6), b"answer");
    // More data after it has said that there is none.
    guest.data(key, b"one more thing");
    guest.expect(op::RST, key);
}

#[test]
fn the_guest_receives_no_more_and_may_send_on() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    guest.say_with(op::SHUTDOWN, key, shutdown::RECEIVE);
    let error = stream.write_all(b"to nobody").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    guest.data(key, b"from somebody");
    let mut text = [0; 13];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"from somebody");
    // The second half: together it is a close, which ends with a reset.
    guest.say_with(op::SHUTDOWN, key, shutdown::SEND);
    guest.expect(op::RST, key);
    assert_eof(&mut stream);
}

#[test]
fn the_host_receives_no_more_and_may_send_on() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    stream.shutdown(Shutdown::Read).unwrap();
    guest.data(key, b"to nobody");
    assert_eq!(guest.expect(op::SHUTDOWN, key).flags, shutdown::RECEIVE);
    // Was on its way; there is room for any amount of it.
    for _ in 0..10 {
        guest.say(op::CREDIT_REQUEST, key);
        guest.expect(op::CREDIT_UPDATE, key);
        guest.data(key, &vec![0; BUF_ALLOC as usize]);
        guest.expect(op::CREDIT_UPDATE, key);
    }
    for _ in 0..2 {
        stream.write_all(b"from somebody").unwrap();
        assert_eq!(guest.expect_data(key, 13), b"from somebody");
    }
}

#[test]
fn a_close_by_the_guest_is_answered_when_all_was_delivered() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    guest.data(key, b"last words");
    guest.say_with(op::SHUTDOWN, key, shutdown::BOTH);
    guest.expect(op::RST, key);
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"last words");
}

#[test]
fn what_the_guest_sent_before_its_close_waits_for_a_slow_host_program() {
    // Whether the guest waits for our RST or has forgotten the connection meanwhile.
    for impatient in [false, true] {
        let mut guest = Guest::new();
        let (mut stream, key) = guest.accept(1);
        let total = fill_up(&mut guest, key);
        guest.say_with(op::SHUTDOWN, key, shutdown::BOTH);
        if impatient {
            guest.say(op::RST, key);
        }
        guest.assert_serves();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), total);
        assert!(
            bytes
                .iter()
                .enumerate()
                .all(|(i, &byte)| byte == pattern(i))
        );
        if !impatient {
            guest.expect(op::RST, key);
        }
        guest.assert_serves();
        assert_eq!(guest.try_receive(), None);
    }
}

#[test]
fn a_close_that_lingers_is_ended_in_time() {
    let mut setup = Setup::default();
    setup.timeouts.linger = Duration::from_millis(1);
    let mut guest = Guest::with(setup);
    // The host program never reads.
    let (stream, key) = guest.accept(1);
    fill_up(&mut guest, key);
    guest.say_with(op::SHUTDOWN, key, shutdown::BOTH);
    guest.expect(op::RST, key);
    drop(stream);
    // The guest never confirms.
    let (stream, key) = guest.accept(1);
    drop(stream);
    assert_eq!(guest.expect(op::SHUTDOWN, key).flags, shutdown::BOTH);
    guest.expect(op::RST, key);
    guest.assert_serves();
}

#[test]
fn a_host_program_that_vanishes_leaves_its_data_and_the_guest_hears_of_it() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    stream.write_all(&[5; 10_000]).unwrap();
    drop(stream);
    let mut bytes = Vec::new();
    let mut flags = 0;
    while flags != shutdown::BOTH {
        let (header, payload) = guest.receive();
        match header.op {
            op::RW => bytes.extend(payload),
            op::SHUTDOWN => flags = header.flags,
            other => panic!("operation {other}"),
        }
    }
    assert_eq!(bytes, [5; 10_000]);
    guest.data(key, b"anyone?");
    guest.say(op::RST, key);
    guest.assert_serves();
}

#[test]
fn a_host_program_that_vanishes_with_unread_data_ends_the_connection() {
    let mut guest = Guest::new();
    let (stream, key) = guest.accept(1);
    fill_up(&mut guest, key);
    drop(stream);
    let header = loop {
        let (header, _) = guest.receive();
        if header.op != op::CREDIT_UPDATE {
            break header;
        }
    };
    assert_eq!(
        (header.op, header.flags & shutdown::RECEIVE),
        (op::SHUTDOWN, shutdown::RECEIVE)
    );
    guest.say_with(op::SHUTDOWN, key, shutdown::BOTH);
    loop {
        let (header, _) = guest.receive();
        if header.op == op::RST {
            break;
        }
    }
    guest.assert_serves();
}

#[test]
fn a_guest_that_resets_ends_the_host_program() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    guest.data(key, b"half a");
    guest.say(op::RST, key);
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"half a");
    // An RST is not answered, and nothing else is known of the connection.
    assert_eq!(guest.try_receive(), None);
    guest.data(key, b" sentence");
    guest.expect(op::RST, key);
}

#[test]
fn many_connections_do_not_mix() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let mut ends: Vec<(UnixStream, (u32, u32))> = Vec::new();
    for i in 0..200 {
        if i % 2 == 0 {
            ends.push(guest.accept(1024));
        } else {
            let key = (80, 3000 + i);
            ends.push((guest.connect(&listener, key), key));
        }
    }
    let mut random = Random::new(3);
    for round in 0..2000_u64 {
        let at = random.below(200) as usize;
        let (stream, key) = &mut ends[at];
        let message = (round << 16 | at as u64).to_le_bytes();
        stream.write_all(&message).unwrap();
        assert_eq!(guest.expect_data(*key, 8), message);
        guest.data(*key, &message);
        let mut back = [0; 8];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, message);
    }
    // All at once: who writes a lot does not shut the others out.
    for (stream, _) in &mut ends {
        stream.write_all(&[9; 3000]).unwrap();
    }
    let mut counts = std::collections::HashMap::<(u32, u32), usize>::new();
    while counts.values().sum::<usize>() < 200 * 3000 {
        let (header, payload): (Header, _) = guest.receive();
        assert_eq!(header.op, op::RW);
        *counts
            .entry((header.src_port, header.dst_port))
            .or_default() += payload.len();
    }
    assert!(ends.iter().all(|(_, key)| counts[key] == 3000));
}

#[test]
fn whoever_stalls_does_not_make_the_worker_spin() {
    let mut guest = Guest::with(Setup {
        rx_buffers: 32,
        ..Setup::default()
    });
    let turns = |guest: &Guest| guest.device.counters.turns.get();
    // No credit, and data; no reader, and data; gone, and no credit for its last words; no line; no reader at all.
    let stall = |guest: &mut Guest, key| {
        guest.sockets.get_mut(&key).unwrap().buf_alloc = 0;
        guest.say(op::CREDIT_UPDATE, key);
    };
    let (mut no_credit, key) = guest.accept(1);
    stall(&mut guest, key);
    no_credit.write_all(b"data").unwrap();
    guest.expect(op::CREDIT_REQUEST, key);
    let (no_reader, key) = guest.accept(2);
    fill_up(&mut guest, key);
    let (mut gone, key) = guest.accept(3);
    stall(&mut guest, key);
    gone.write_all(b"last words").unwrap();
    guest.expect(op::CREDIT_REQUEST, key);
    drop(gone);
    assert_eq!(guest.expect(op::SHUTDOWN, key).flags, shutdown::RECEIVE);
    let (half, key) = guest.accept(4);
    half.shutdown(Shutdown::Write).unwrap();
    guest.expect(op::SHUTDOWN, key);
    let (unread, key) = guest.accept(5);
    guest.say_with(op::SHUTDOWN, key, shutdown::RECEIVE);
    let (chatter, key) = guest.accept(6);
    let silent: Vec<_> = (0..MAX_HANDSHAKES + 5)
        .map(|_| guest.dial(b"CON"))
        .collect();
    for empty in [false, true] {
        if empty {
            // No buffer either, and somebody who has something to say.
            guest.refills = false;
            (&chatter).write_all(&[0; 200_000]).unwrap();
            for _ in 0..32 {
                guest.receive();
            }
        }
        let opcode = if empty {
            op::CREDIT_UPDATE
        } else {
            op::CREDIT_REQUEST
        };
        // Until everybody has come to rest.
        let at_rest = (0..1000).any(|_| {
            let before = turns(&guest);
            guest.say(opcode, key);
            turns(&guest) - before <= 1
        });
        assert!(at_rest, "the worker never rests");
        let before = turns(&guest);
        for _ in 0..50 {
            guest.say(op::CREDIT_UPDATE, key);
        }
        let woken = turns(&guest) - before;
        // One kick each, and nothing else.
        assert!(woken <= 50, "{woken} turns for 50 packets");
        while guest.try_receive().is_some() {}
    }
    drop((no_credit, no_reader, half, unread, chatter, silent));
}
