use std::io::{Read, Write};

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::super::packet::{HEADER_BYTES, Header, op, shutdown};
use super::super::table::MAX_CONNECTIONS;
use super::guest::*;
use crate::virtio::VirtioDevice;
use crate::virtio::mock::{DATA, Driver, HOLE, Part, SEAM};

const HEADER: u32 = HEADER_BYTES as u32;

#[test]
fn a_header_and_its_payload_may_be_cut_anywhere() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    for cut in [1, 43, 44, 45, 50, 63] {
        let header = Header {
            len: 20,
            ..guest.header(op::RW, key.0, key.1)
        };
        let bytes = [&header.bytes()[..], b"twenty bytes of data"].concat();
        guest.tx.write(DATA, &bytes);
        let parts: [Part; 2] = [(DATA, cut, false), (DATA + u64::from(cut), 64 - cut, false)];
        let head = guest.tx.chain(&parts);
        assert_eq!(guest.tx.run(head), 0);
        let mut text = [0; 20];
        stream.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"twenty bytes of data");
    }
    // Every byte a descriptor of its own, over the seam of two regions, in an indirect table.
    let header = Header {
        len: 20,
        ..guest.header(op::RW, key.0, key.1)
    };
    guest.tx.write(SEAM - 50, &header.bytes());
    guest.tx.write(SEAM - 6, b"over the seam it is!");
    let parts: Vec<Part> = (0..64).map(|i| (SEAM - 50 + i, 1, false)).collect();
    let head = guest.tx.indirect_chain(DATA, &parts);
    assert_eq!(guest.tx.run(head), 0);
    let mut text = [0; 20];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"over the seam it is!");
}

#[test]
fn an_rx_buffer_may_be_cut_anywhere() {
    let mut guest = Guest::with(Setup {
        rx_buffers: 2,
        ..Setup::default()
    });
    guest.refills = false;
    let (mut stream, key) = guest.accept(1);
    stream.write_all(b"first").unwrap();
    assert_eq!(guest.expect_data(key, 5), b"first");
    for cut in [1, 43, 44, 45, 48] {
        let parts: [Part; 3] = [
            (SEAM - u64::from(cut), cut, true),
            (SEAM, 49 - cut, true),
            (DATA, 3, true),
        ];
        let head = guest.rx.chain(&parts);
        guest.rx.offer(head);
        guest.rx.kick();
        stream.write_all(b"12345678").unwrap();
        assert_eq!(guest.rx.wait(1), [(head, 52)]);
        let bytes = guest.rx.read(SEAM - u64::from(cut), 49);
        let header = Header::parse(bytes[..44].try_into().unwrap());
        assert_eq!((header.op, header.len), (op::RW, 8));
        assert_eq!(&bytes[44..], b"12345");
        assert_eq!(guest.rx.read(DATA, 3), b"678");
    }
}

/// Payload that is not what its header says: the guest's own connection ends, and nothing of it arrives
/// (CVE-2019-18960 was a device that believed the header).
#[test]
fn a_length_beyond_the_buffers_resets_its_connection() {
    let cases: [(u32, &[Part]); 9] = [
        (1, &[]),
        (u32::MAX, &[]),
        (101, &[(DATA + 64, 100, false)]),
        (65_537, &[(DATA + 64, 65_536, false)]),
        (0x8000_0000, &[(DATA + 64, 100, false)]),
        (u32::MAX, &[(DATA + 64, 100, false)]),
        (100, &[(HOLE, 100, false)]),
        (100, &[(HOLE - 50, 100, false)]),
        (100, &[(u64::MAX - 50, 100, false)]),
    ];
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    for (i, (len, parts)) in cases.into_iter().enumerate() {
        let mut stream = guest.connect(&listener, (80, i as u32));
        let header = Header {
            len,
            ..guest.header(op::RW, 80, i as u32)
        };
        guest.tx.write(DATA, &header.bytes());
        let head = guest.tx.chain(&[&[(DATA, HEADER, false)], parts].concat());
        assert_eq!(guest.tx.run(head), 0, "case {i}");
        guest.expect(op::RST, (80, i as u32));
        assert_eof(&mut stream);
        assert_eq!(guest.device.metrics().malformed, i as u64 + 1);
    }
    // Of no connection, with a whole gigabyte that is there.
    let header = Header {
        len: 0x100_0000,
        ..guest.header(op::RW, 80, 99)
    };
    guest.tx.write(DATA, &header.bytes());
    let head = guest
        .tx
        .chain(&[(DATA, HEADER, false), (DATA, 0x100_0000, false)]);
    assert_eq!(guest.tx.run(head), 0);
    guest.expect(op::RST, (80, 99));
    guest.assert_serves();
}

#[test]
fn more_than_64_kib_in_one_packet_is_beyond_any_credit() {
    let mut guest = Guest::new();
    for len in [65_537, 0xE0_0000] {
        let (mut stream, key) = guest.accept(1);
        let header = Header {
            len,
            ..guest.header(op::RW, key.0, key.1)
        };
        guest.tx.write(DATA, &header.bytes());
        let parts = [(DATA, HEADER, false), (DATA + 0x10_0000, len, false)];
        let head = guest.tx.chain(&parts);
        assert_eq!(guest.tx.run(head), 0);
        guest.expect(op::RST, key);
        assert_eof(&mut stream);
    }
    guest.assert_serves();
}

#[test]
fn chains_without_a_header_are_returned_and_counted() {
    let mut guest = Guest::new();
    let cases: [&[Part]; 8] = [
        &[(DATA, 0, false)],
        &[(DATA, HEADER - 1, false)],
        &[(DATA, 43, false), (DATA, 0, false)],
        &[(DATA, HEADER, true)],
        &[(DATA, HEADER, false), (DATA + 64, 100, true)],
        &[(DATA + 64, 100, true), (DATA, HEADER, false)],
        &[(HOLE, HEADER, false)],
        &[(HOLE - 20, HEADER, false)],
    ];
    for (i, parts) in cases.into_iter().enumerate() {
        let head = guest.tx.chain(parts);
        assert_eq!(guest.tx.run(head), 0);
        assert_eq!(guest.device.metrics().malformed, i as u64 + 1);
    }
    // A cycle, a chain that leaves the table, and more descriptors than the queue has.
    guest.tx.descriptor(100, DATA, 16, VRING_DESC_F_NEXT, 101);
    guest.tx.descriptor(101, DATA, 16, VRING_DESC_F_NEXT, 100);
    assert_eq!(guest.tx.run(100), 0);
    guest.tx.descriptor(102, DATA, 16, VRING_DESC_F_NEXT, 256);
    assert_eq!(guest.tx.run(102), 0);
    let head = guest.tx.indirect_chain(DATA, &[(DATA, 1, false); 257]);
    assert_eq!(guest.tx.run(head), 0);
    assert_eq!(guest.device.metrics().malformed, 11);
    assert_eq!(guest.try_receive(), None);
    guest.assert_serves();
}

#[test]
fn buffers_that_take_no_packet_are_returned_empty_and_counted() {
    let mut guest = Guest::with(Setup {
        rx_buffers: 0,
        ..Setup::default()
    });
    let mut stream = guest.dial(b"CONNECT 1\n");
    let cases: [&[Part]; 8] = [
        &[(DATA, 0, true)],
        &[(DATA, HEADER - 1, true)],
        // A header, and no byte of payload.
        &[(DATA, HEADER, true)],
        &[(DATA, 4096, false)],
        &[(DATA, 16, false), (DATA, 4096, true)],
        &[(HOLE, 4096, true)],
        &[(HOLE - 100, 4096, true)],
        &[(DATA, HEADER, true), (u64::MAX - 5, 100, true)],
    ];
    for (i, parts) in cases.into_iter().enumerate() {
        let head = guest.rx.chain(parts);
        assert_eq!(guest.rx.run(head), 0, "case {i}");
        assert_eq!(guest.device.metrics().malformed, i as u64 + 1);
    }
    let flags = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE;
    guest.rx.descriptor(200, DATA, 100, flags, 201);
    guest.rx.descriptor(201, DATA, 100, flags, 200);
    assert_eq!(guest.rx.run(200), 0);
    // The request is still there, and so is what the host program says.
    guest.post_buffers(16, 100);
    let key = guest.expect_request(1);
    guest.say(op::RESPONSE, key);
    assert_eq!(read_line(&mut stream), format!("OK {}\n", key.0));
    stream.write_all(&[3; 1000]).unwrap();
    assert_eq!(guest.expect_data(key, 1000), [3; 1000]);
}

#[test]
fn wrong_addresses_and_types_are_answered_by_a_reset() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    let base = guest.header(op::RW, key.0, key.1);
    let wrong = [
        Header { dst_cid: 0, ..base },
        Header { dst_cid: 1, ..base },
        Header {
            dst_cid: u64::from(CID),
            ..base
        },
        Header {
            dst_cid: 1 << 32 | 2,
            ..base
        },
        Header { src_cid: 2, ..base },
        Header {
            src_cid: u64::from(CID) | 1 << 40,
            ..base
        },
        Header { kind: 0, ..base },
        Header { kind: 2, ..base },
        Header {
            kind: u16::MAX,
            ..base
        },
    ];
    for header in wrong {
        guest.send(&header, &[]);
        let (reset, _) = guest.receive();
        assert_eq!(reset.op, op::RST);
        assert_eq!(reset.src_cid, header.dst_cid);
        assert_eq!((reset.src_port, reset.dst_port), key);
        assert_eq!(reset.kind, header.kind);
        // An RST never gets an answer.
        guest.send(
            &Header {
                op: op::RST,
                ..header
            },
            &[],
        );
    }
    assert_eq!(guest.try_receive(), None);
    // None of it was the connection.
    guest.sockets.insert(key, Socket::peer_of(&base));
    guest.data(key, b"unharmed");
    let mut text = [0; 8];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"unharmed");
}

#[test]
fn packets_of_no_connection_are_answered_by_a_reset() {
    let mut guest = Guest::new();
    for opcode in [
        op::RESPONSE,
        op::SHUTDOWN,
        op::RW,
        op::CREDIT_UPDATE,
        op::CREDIT_REQUEST,
        0,
        8,
        u16::MAX,
    ] {
        guest.say(opcode, (5, 6));
        guest.expect(op::RST, (5, 6));
    }
    guest.say(op::RST, (5, 6));
    guest.assert_serves();
}

#[test]
fn operations_out_of_place_reset_the_connection() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    for (i, opcode) in [op::REQUEST, op::RESPONSE, 0, 8, u16::MAX]
        .into_iter()
        .enumerate()
    {
        let key = (80, i as u32);
        let mut stream = guest.connect(&listener, key);
        guest.say(opcode, key);
        guest.expect(op::RST, key);
        assert_eof(&mut stream);
    }
    // While the guest is to answer a request.
    for opcode in [op::REQUEST, op::RW, op::SHUTDOWN, 0, 8] {
        let mut stream = guest.dial(b"CONNECT 3\n");
        let key = guest.expect_request(3);
        guest.say(opcode, key);
        guest.expect(op::RST, key);
        assert_eof(&mut stream);
    }
    guest.assert_serves();
}

#[test]
fn a_response_before_the_request_was_sent_is_out_of_place() {
    let mut guest = Guest::with(Setup {
        rx_buffers: 0,
        ..Setup::default()
    });
    let mut stream = guest.dial(b"CONNECT 3\n");
    // The first port is known; the guest need not see the request to guess it. Until the device has seen the host
    // program the answer is a reset for no connection, which waits for a buffer too.
    let key = (1 << 30 | 1, 3);
    while guest.device.metrics().connections == 0 {
        std::thread::yield_now();
    }
    guest.say(op::RESPONSE, key);
    assert_eof(&mut stream);
    guest.post_buffers(16, 100);
    guest.expect(op::RST, key);
    guest.assert_serves();
}

#[test]
fn credit_that_makes_no_sense_stalls_its_own_connection_only() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    // More read than was sent, by one and by a lot; no buffer at all; one that shrinks.
    for (i, (buf_alloc, fwd_cnt)) in [(1000, 1), (1000, 5000), (0, 0), (1, 0x8000_0000)]
        .into_iter()
        .enumerate()
    {
        let header = Header {
            buf_alloc,
            fwd_cnt,
            ..guest.header(op::CREDIT_UPDATE, key.0, key.1)
        };
        guest.send(&header, &[]);
        stream.write_all(b"?").unwrap();
        if i == 0 {
            guest.expect(op::CREDIT_REQUEST, key);
        }
        guest.assert_serves();
    }
    assert_eq!(guest.try_receive(), None);
    guest.say(op::CREDIT_UPDATE, key);
    assert_eq!(guest.expect_data(key, 4), b"????");
}

#[test]
fn a_flood_of_connections_and_resets_grows_nothing() {
    let mut guest = Guest::with(Setup {
        rx_buffers: 0,
        ..Setup::default()
    });
    let listener = guest.listen(80);
    // Nothing of this can be answered: there are no buffers.
    for i in 0..3000 {
        guest.say(op::REQUEST, (80, i % 7));
        guest.say(op::RST, (80, i % 7));
        guest.say(op::RW, (81, i));
        guest.say(op::REQUEST, (81, i));
        guest.say(op::CREDIT_REQUEST, (80, i));
        while listener.set_nonblocking(true).is_ok() && listener.accept().is_ok() {}
    }
    let queues = guest.device.suspend();
    let muxer = guest.device.muxer.as_ref().unwrap();
    assert_eq!(muxer.connections(), 0);
    assert!(muxer.waiting() <= 1024, "{}", muxer.waiting());
    guest.activate_with(queues);
    // 1024 answers, the rest was dropped and counted.
    guest.post_buffers(64, 64);
    for _ in 0..1024 {
        assert_eq!(guest.receive().0.op, op::RST);
    }
    assert_eq!(guest.try_receive(), None);
    guest.assert_serves();
}

#[test]
fn as_many_connections_as_there_can_be_send_and_vanish() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    for round in 0..2 {
        let mut streams = Vec::new();
        for i in 0..MAX_CONNECTIONS as u32 {
            streams.push(guest.connect(&listener, (80, i)));
            guest.data((80, i), &[round; 100]);
        }
        drop(streams);
        for i in 0..MAX_CONNECTIONS as u32 {
            guest.say_with(op::SHUTDOWN, (80, i), shutdown::BOTH);
        }
        let mut resets = 0;
        while resets < MAX_CONNECTIONS {
            resets += usize::from(guest.receive().0.op == op::RST);
        }
    }
    guest.assert_serves();
}

#[test]
fn an_untrustworthy_queue_stops_until_reset() {
    type Pick = fn(&mut Guest) -> &mut Driver;
    let queues: [Pick; 2] = [|guest| &mut guest.tx, |guest| &mut guest.rx];
    let lies: [fn(&mut Driver); 3] = [
        |driver| driver.set_avail_index(driver.used_index().wrapping_add(600)),
        |driver| driver.set_avail_index(driver.used_index().wrapping_sub(1)),
        |driver| driver.offer(256),
    ];
    for pick in queues {
        for lie in lies {
            let mut guest = Guest::with(Setup {
                rx_buffers: 0,
                ..Setup::default()
            });
            // Something for the guest, so that the rx queue is looked at.
            let mut stream = guest.dial(b"CONNECT 3\n");
            lie(pick(&mut guest));
            pick(&mut guest).kick();
            guest.interrupt.wait(|told| told.needs_reset == 1);
            pick(&mut guest).kick();
            // The driver resets the device: all is forgotten, and it serves again.
            guest.device.suspend();
            guest.device.reset();
            assert_eq!(guest.interrupt.told().needs_reset, 1);
            let mut again = Guest::around(guest.device, guest.dir, true);
            again.post_buffers(32, 4096);
            again.activate();
            let _ = stream.read(&mut [0; 1]);
            again.assert_serves();
        }
    }
}

#[test]
fn a_broken_tx_queue_leaves_the_rx_queue_alone() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    guest.tx.offer(300);
    guest.tx.kick();
    guest.interrupt.wait(|told| told.needs_reset == 1);
    stream.write_all(b"still flows").unwrap();
    assert_eq!(guest.expect_data(key, 11), b"still flows");
}
