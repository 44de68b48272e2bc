use super::*;

fn decode_all(decoder: &mut Decoder) -> Vec<Inbound> {
    std::iter::from_fn(|| decoder.event()).collect()
}

fn opened() -> Decoder {
    let mut decoder = Decoder::for_client_bytes();
    decoder.push(&crate::preamble(&[7; 16]));
    assert_eq!(decoder.event(), Some(Inbound::Preamble([7; 16])));
    decoder
}

fn frames() -> Vec<Frame> {
    vec![
        Frame::json(0, Kind::Hello, &crate::ClientHello { version: 1 }).unwrap(),
        Frame::data(3, Channel::In, vec![9; MAX_PAYLOAD]),
        Frame::credit(3, Channel::Err, 77),
        Frame::eof_counted(3, 1 << 40),
        Frame::eof(3, Channel::Out),
        Frame::empty(u32::MAX, Kind::Ping),
    ]
}

/// A small generator, so that the test needs no crate and repeats itself.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[test]
fn frames_survive_any_cut_of_the_byte_stream() {
    let mut bytes = Vec::new();
    frames().iter().for_each(|frame| frame.encode(&mut bytes));
    for size in [1, 2, 11, 12, 13, 4096, bytes.len()] {
        let mut decoder = opened();
        let mut found = Vec::new();
        for chunk in bytes.chunks(size) {
            decoder.push(chunk);
            found.extend(decode_all(&mut decoder));
        }
        let expected: Vec<Inbound> = frames().into_iter().map(Inbound::Frame).collect();
        assert!(found == expected, "in pieces of {size}");
    }
}

#[test]
fn numbers_in_frames_come_back() {
    assert_eq!(
        Frame::credit(1, Channel::Out, 123_456).credit_bytes(),
        123_456
    );
    assert_eq!(Frame::eof_counted(1, u64::MAX).eof_count(), Some(u64::MAX));
    assert_eq!(Frame::eof(1, Channel::Out).eof_count(), None);
}

#[test]
fn every_broken_header_is_named() {
    let good = header(5, Kind::Data, Channel::In, 4);
    assert_eq!(
        check(good, Side::Client),
        Ok((5, Kind::Data, Channel::In, 4))
    );
    let with = |index: usize, byte: u8| {
        let mut bytes = good;
        bytes[index] = byte;
        check(bytes, Side::Client).unwrap_err()
    };
    assert_eq!(with(4, 0), FrameError::Kind(0));
    assert_eq!(with(4, 200), FrameError::Kind(200));
    assert_eq!(
        with(4, Kind::Exited as u8),
        FrameError::Direction(Kind::Exited)
    );
    assert_eq!(
        with(4, Kind::Ping as u8),
        FrameError::Payload(Kind::Ping, 4)
    );
    assert_eq!(with(5, 1), FrameError::Channel(1));
    assert_eq!(with(5, 3), FrameError::Channel(3));
    assert_eq!(with(6, 1), FrameError::Reserved(1));
    assert_eq!(with(10, 1), FrameError::Length(65540));
    assert_eq!(with(8, 0), FrameError::Payload(Kind::Data, 0));
    assert_eq!(with(0, 0), FrameError::Stream(Kind::Data, 0));
    let exec = header(5, Kind::Exec, Channel::In, 4);
    assert_eq!(
        check(exec, Side::Agent),
        Err(FrameError::Direction(Kind::Exec))
    );
}

#[test]
fn a_preamble_is_found_after_a_dead_clients_half_frame_and_padding() {
    let mut decoder = opened();
    let mut bytes = Vec::new();
    Frame::data(1, Channel::In, vec![1; MAX_PAYLOAD]).encode(&mut bytes);
    bytes.truncate(HEADER_LEN + 5);
    decoder.push(&bytes);
    decoder.push(&[0; HEADER_LEN + MAX_PAYLOAD]);
    decoder.push(&crate::preamble(&[8; 16]));
    let found = decode_all(&mut decoder);
    assert_eq!(found.last(), Some(&Inbound::Preamble([8; 16])));
    assert!(found.contains(&Inbound::Malformed(FrameError::Kind(0))));
}

#[test]
fn a_preamble_at_a_frame_boundary_needs_no_padding() {
    let mut decoder = opened();
    decoder.push(&crate::preamble(&[8; 16]));
    let expected = [
        Inbound::Malformed(FrameError::Preamble),
        Inbound::Preamble([8; 16]),
    ];
    assert_eq!(decode_all(&mut decoder), expected);
}

#[test]
fn the_magic_word_inside_a_payload_is_only_data() {
    let mut decoder = opened();
    let frame = Frame::data(1, Channel::In, crate::preamble(&[9; 16]));
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    decoder.push(&bytes);
    assert_eq!(decode_all(&mut decoder), [Inbound::Frame(frame)]);
}

#[test]
fn whatever_arrives_the_next_padded_preamble_is_found_and_memory_is_bounded() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for round in 0..300 {
        let mut decoder = if round % 2 == 0 {
            opened()
        } else {
            Decoder::for_client_bytes()
        };
        let mut bytes = Vec::new();
        for _ in 0..random.below(6) {
            frames()[random.below(6)].encode(&mut bytes);
        }
        for _ in 0..random.below(20) {
            if !bytes.is_empty() {
                let at = random.below(bytes.len());
                bytes[at] = random.below(256) as u8;
            }
        }
        bytes.truncate(random.below(bytes.len() + 1));
        for chunk in bytes.chunks(1 + random.below(5000)) {
            decoder.push(chunk);
            decode_all(&mut decoder);
            assert!(decoder.buffer.len() < HEADER_LEN + MAX_PAYLOAD);
        }
        decoder.push(&[0; HEADER_LEN + MAX_PAYLOAD]);
        decoder.push(&crate::preamble(&[3; 16]));
        assert_eq!(
            decode_all(&mut decoder).last(),
            Some(&Inbound::Preamble([3; 16])),
            "round {round}"
        );
    }
}
