use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::super::packet::{op, shutdown};
use super::super::*;
use super::guest::*;
use crate::virtio::mock::{DATA, HOLE};

#[test]
fn pause_and_resume_keep_connections_and_what_happened_meanwhile() {
    for event_idx in [true, false] {
        let mut guest = Guest::with(Setup {
            event_idx,
            ..Setup::default()
        });
        let listener = guest.listen(80);
        let (mut stream, key) = guest.accept(1);
        let mut other = guest.connect(&listener, (80, 5));
        for round in 0..10_u8 {
            let queues = guest.device.suspend();
            assert_eq!(queues.len(), 3);
            assert_eq!(guest.device.suspend().len(), 0);
            // All of it while nobody serves: data, an end, a new host program, a kick.
            stream.write_all(&[round; 5000]).unwrap();
            let mut dialled = guest.dial(b"CONNECT 2\n");
            let header = guest.header(op::RW, 80, 5);
            let packet = crate::virtio::vsock::packet::Header { len: 4, ..header };
            let head = guest.tx_chain(&packet, &[round; 4]);
            guest.tx.offer(head);
            guest.activate_with(queues);
            guest.tx.wait(1);
            let mut bytes = [0; 4];
            other.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, [round; 4]);
            let mut received = Vec::new();
            let mut request = None;
            while received.len() < 5000 || request.is_none() {
                let (header, payload) = guest.receive();
                match header.op {
                    op::RW => received.extend(payload),
                    op::REQUEST => request = Some((header.src_port, header.dst_port)),
                    other => panic!("operation {other}"),
                }
            }
            assert_eq!(received, [round; 5000]);
            let request = request.unwrap();
            guest.say(op::RESPONSE, request);
            assert_eq!(read_line(&mut dialled), format!("OK {}\n", request.0));
            guest.say(op::RST, request);
            guest.data(key, b"alive");
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"alive");
        }
    }
}

#[test]
fn a_stream_goes_on_over_many_pauses() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|i| (i / 11) as u8).collect();
    let written = bytes.clone();
    let writer = std::thread::spawn(move || {
        stream.write_all(&written).unwrap();
        stream
    });
    let mut received = Vec::new();
    let mut packets = 0;
    while received.len() < bytes.len() {
        let (header, payload) = guest.receive();
        match header.op {
            op::RW => received.extend(payload),
            op::CREDIT_REQUEST => {}
            other => panic!("operation {other}"),
        }
        packets += 1;
        if packets % 40 == 0 {
            let queues = guest.device.suspend();
            guest.activate_with(queues);
            guest.say(op::CREDIT_UPDATE, key);
        }
    }
    assert_eq!(received, bytes);
    writer.join().unwrap();
}

#[test]
fn what_ends_during_a_pause_is_noticed_after_it() {
    let mut guest = Guest::new();
    let (gone, gone_key) = guest.accept(1);
    let (half, half_key) = guest.accept(2);
    let waiting = guest.dial(b"CONNECT 3\n");
    let waiting_key = guest.expect_request(3);
    let queues = guest.device.suspend();
    drop(gone);
    half.shutdown(Shutdown::Write).unwrap();
    drop(waiting);
    guest.activate_with(queues);
    let mut heard = std::collections::HashMap::new();
    while heard.get(&gone_key) != Some(&(op::SHUTDOWN, shutdown::BOTH))
        || !heard.contains_key(&half_key)
        || !heard.contains_key(&waiting_key)
    {
        let (header, _) = guest.receive();
        heard.insert(
            (header.src_port, header.dst_port),
            (header.op, header.flags),
        );
    }
    assert_eq!(heard[&half_key], (op::SHUTDOWN, shutdown::SEND));
    assert_eq!(heard[&waiting_key].0, op::RST);
}

#[test]
fn a_pause_does_not_use_up_anybodys_patience() {
    let mut guest = Guest::new();
    let _stream = guest.dial(b"CONNECT 3\n");
    let key = guest.expect_request(3);
    let _silent = guest.dial(b"CONN");
    let (closing, closing_key) = guest.accept(4);
    drop(closing);
    guest.expect(op::SHUTDOWN, closing_key);
    let queues = guest.device.suspend();
    // As if the pause had been long: a request, a handshake and a close.
    let now = Instant::now();
    let muxer = guest.device.muxer.as_mut().unwrap();
    muxer.pass_time();
    assert_eq!(muxer.late_at(Instant::now()), 3);
    guest.activate_with(queues);
    let queues = guest.device.suspend();
    let muxer = guest.device.muxer.as_ref().unwrap();
    assert_eq!(muxer.late_at(now + Duration::from_secs(3599)), 0);
    guest.activate_with(queues);
    guest.say(op::RESPONSE, key);
    guest.assert_serves();
}

#[test]
fn a_reset_by_the_driver_closes_every_connection_at_once() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let (mut stream, _) = guest.accept(1);
    let mut other = guest.connect(&listener, (80, 5));
    guest.device.suspend();
    guest.device.reset();
    // Before the driver comes back, if it ever does.
    assert_eof(&mut stream);
    assert_eof(&mut other);
    let mut again = Guest::around(guest.device, guest.dir, true);
    again.post_buffers(16, 4096);
    again.activate();
    // Nothing of the old life, neither packet nor event.
    again.assert_serves();
    assert_eq!(again.event.used_index(), 0);
}

#[test]
fn state_round_trips_and_the_guest_hears_that_its_connections_are_gone() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    let queues = guest.device.suspend();
    let DeviceState::Vsock(state) = guest.device.state() else {
        panic!("not the state of virtio-vsock");
    };
    let expected = VsockState {
        guest_cid: CID,
        path: guest.path(),
    };
    assert_eq!(state, expected);
    // The machine of the snapshot is gone, its socket with it.
    let taken = Vsock::from_state(&state).err().unwrap();
    assert!(matches!(taken, VsockError::Taken { .. }));
    let placeholder = Vsock::new(CID, &guest.dir.path().join("placeholder")).unwrap();
    drop(std::mem::replace(&mut guest.device, placeholder));
    guest.device = Vsock::from_state(&state).unwrap();
    assert_eof(&mut stream);
    assert_eq!(guest.device.state(), DeviceState::Vsock(state));
    guest.activate_with(queues);
    // There was no buffer for the event; it waits for one.
    let head = guest.event.chain(&[(DATA + 0x7_0000, 8, true)]);
    guest.event.write(DATA + 0x7_0000, &[0xFF; 8]);
    assert_eq!(guest.event.run(head), 4);
    assert_eq!(
        guest.event.read(DATA + 0x7_0000, 8),
        [0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]
    );
    guest.data(key, b"who?");
    guest.expect(op::RST, key);
    guest.assert_serves();
    // Once is enough.
    let head = guest.event.chain(&[(DATA + 0x7_0000, 8, true)]);
    guest.event.offer(head);
    guest.event.kick();
    guest.assert_serves();
    assert_eq!(guest.event.used_index(), 1);
}

#[test]
fn a_restored_device_may_get_its_listener_from_outside() {
    let dir = tempfile::TempDir::new().unwrap();
    let state = VsockState {
        guest_cid: CID,
        path: dir.path().join("not-there/v"),
    };
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("v")).unwrap();
    let device = Vsock::from_state_with_listener(&state, listener).unwrap();
    let mut guest = Guest::around(device, dir, true);
    guest.post_buffers(16, 4096);
    let head = guest.event.chain(&[(DATA, 4, true)]);
    guest.event.offer(head);
    guest.activate();
    assert_eq!(guest.event.wait(1), [(head, 4)]);
    guest.assert_serves();
    for state in [
        VsockState {
            guest_cid: 0,
            path: "v".into(),
        },
        VsockState {
            guest_cid: 3,
            path: "".into(),
        },
    ] {
        assert!(Vsock::from_state(&state).is_err());
    }
}

#[test]
fn a_transport_reset_on_demand_closes_all_connections() {
    let mut guest = Guest::new();
    let resetter = guest.device.transport_resetter();
    let (mut stream, key) = guest.accept(1);
    // Buffers that take no event are returned and counted.
    for parts in [
        &[(DATA, 3, true)][..],
        &[(DATA, 4, false)],
        &[(HOLE, 4, true)],
    ] {
        let head = guest.event.chain(parts);
        guest.event.offer(head);
    }
    let head = guest.event.chain(&[(DATA, 4, true)]);
    guest.event.offer(head);
    resetter.reset();
    assert_eof(&mut stream);
    let used = guest.event.wait(4);
    assert_eq!(
        used.iter().map(|used| used.1).collect::<Vec<_>>(),
        [0, 0, 0, 4]
    );
    assert_eq!(guest.device.metrics().malformed, 3);
    guest.say(op::CREDIT_UPDATE, key);
    guest.expect(op::RST, key);
    guest.assert_serves();
    // While it does not serve: the event comes with the resume.
    let queues = guest.device.suspend();
    resetter.reset();
    let head = guest.event.chain(&[(DATA, 4, true)]);
    guest.event.offer(head);
    guest.activate_with(queues);
    assert_eq!(guest.event.wait(1), [(head, 4)]);
}

#[test]
fn a_lying_event_queue_needs_a_reset_and_the_streams_flow() {
    let mut guest = Guest::new();
    let (mut stream, key) = guest.accept(1);
    let resetter = guest.device.transport_resetter();
    guest.event.set_avail_index(65);
    guest.event.kick();
    guest.data(key, b"a");
    stream.read_exact(&mut [0]).unwrap();
    resetter.reset();
    guest.interrupt.wait(|told| told.needs_reset == 1);
    guest.assert_serves();
}

#[test]
fn rx_and_tx_queues_are_needed_and_the_event_queue_is_not() {
    let mut guest = Guest::new();
    guest.device.suspend();
    for missing in [0, 1] {
        let mut queues = guest.queues();
        queues.retain(|queue| queue.index != missing);
        let error = guest
            .device
            .activate(Activation {
                memory: guest.rx.memory.clone(),
                features: 0,
                queues,
                interrupt: guest.interrupt.clone(),
            })
            .unwrap_err();
        assert!(
            matches!(error, ActivateError::MissingQueue { got: 2, missing: m } if m == missing)
        );
    }
    // As it was before: it can still be activated.
    let mut again = Guest::around(guest.device, guest.dir, true);
    again.post_buffers(16, 4096);
    let mut queues = again.queues();
    queues.pop();
    again.activate_with(queues);
    again.assert_serves();
    assert_eq!(again.device.suspend().len(), 2);
}

#[test]
fn interrupts_come_only_when_the_guest_wants_them() {
    let mut guest = Guest::new();
    let (mut stream, _) = guest.accept(1);
    // Far away: with EVENT_IDX nothing is said before that index is passed.
    guest
        .rx
        .set_used_event(guest.rx.used_index().wrapping_add(1000));
    let before = guest.interrupt.told().queues.len();
    stream.write_all(b"hush").unwrap();
    while guest.try_receive().is_none() {
        std::thread::yield_now();
    }
    guest.device.suspend();
    let told = guest.interrupt.told().queues;
    assert!(told[before..].iter().all(|&queue| queue != 0), "{told:?}");
}
