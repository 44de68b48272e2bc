//! A long pseudo-random stream over TCP, compared byte by byte where it arrives.
//!
//! The receiver makes the same stream of the seed that comes first. That finds more than a hash would, says where the
//! first difference is, and costs a fraction of it, which counts in a guest under emulation.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

use sha2::{Digest, Sha256};

use crate::background::ready;
use crate::options::{Options, left};
use crate::sockets::{connect, listen};
use crate::{Failure, Result, refused};

/// Bytes of one write; larger than what segmentation offload takes at once.
const PIECE: usize = 256 * 1024;
/// Before the stream: this word, the seed and the number of bytes, little-endian.
const MAGIC: &[u8; 8] = b"fiefstrm";
const HEADER: usize = 24;
/// What a receiver that is content says.
const GOOD: &str = "equal";

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016), eight bytes
/// at a time.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // 0 is the one state that it never leaves.
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    fn fill(&mut self, piece: &mut [u8]) {
        for word in piece.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let bytes = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            word.copy_from_slice(bytes.get(..word.len()).unwrap_or_default());
        }
    }
}

fn digest(hash: Option<Sha256>) -> String {
    let hex = |hash: Sha256| {
        let bytes = hash.finalize();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    hash.map(hex)
        .map(|hex: String| format!(" sha256 {hex}"))
        .unwrap_or_default()
}

/// Sends `bytes` and waits for the receiver's verdict.
///
/// # Errors
/// No connection, or the receiver is not content.
pub fn send(target: SocketAddr, bytes: u64, options: &Options) -> Result<()> {
    let mut stream = connect(target, options)?;
    let seed = options.seed.unwrap_or(1);
    let failed = || refused("cannot send on");
    let header = [&MAGIC[..], &seed.to_le_bytes(), &bytes.to_le_bytes()].concat();
    stream.write_all(&header).map_err(failed())?;
    let mut random = Random::new(seed);
    let mut hash = options.sha256.then(Sha256::new);
    let mut piece = vec![0; PIECE];
    let mut to_send = bytes;
    while to_send > 0 {
        random.fill(&mut piece);
        let length = usize::try_from(to_send).map_or(PIECE, |rest| rest.min(PIECE));
        let part = piece.get(..length).unwrap_or_default();
        if let Some(hash) = &mut hash {
            hash.update(part);
        }
        stream.write_all(part).map_err(failed())?;
        to_send -= length as u64;
    }
    stream.shutdown(Shutdown::Write).map_err(failed())?;
    let mut verdict = String::new();
    stream
        .read_to_string(&mut verdict)
        .map_err(refused("no verdict came"))?;
    println!("sent {bytes} bytes, {verdict}{}", digest(hash));
    if verdict == GOOD {
        Ok(())
    } else {
        Err(Failure::Refused(format!("the receiver says: {verdict}")))
    }
}

/// Takes one stream and compares it.
///
/// # Errors
/// It is not what was sent, or nothing came in the time that was given.
pub fn receive(port: u16, options: &Options) -> Result<()> {
    let listener = listen(port, options)?;
    let end = options.end();
    ready();
    if let Some(end) = end {
        // An attempt to accept obeys the time-out for receiving (socket(7)).
        let left = left(end).unwrap_or_default();
        let left = nix::sys::time::TimeVal::new(
            i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            i64::from(left.subsec_micros()),
        );
        nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::ReceiveTimeout, &left)
            .map_err(refused("cannot wait"))?;
    }
    let (mut stream, _) = listener.accept().map_err(refused("nobody came"))?;
    let mut hash = options.sha256.then(Sha256::new);
    let (received, verdict) = compare(&mut stream, hash.as_mut());
    let _ = stream.write_all(verdict.as_bytes());
    println!("received {received} bytes, {verdict}{}", digest(hash));
    if verdict == GOOD {
        Ok(())
    } else {
        Err(Failure::Refused(verdict))
    }
}

/// Reads a whole stream; how many bytes came, and what to say of them.
fn compare(stream: &mut impl Read, mut hash: Option<&mut Sha256>) -> (u64, String) {
    let mut header = [0; HEADER];
    if let Err(error) = stream.read_exact(&mut header) {
        return (0, format!("no beginning: {error}"));
    }
    let number = |at: usize| {
        let bytes = header.get(at..at + 8).and_then(|part| part.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    if !header.starts_with(MAGIC) {
        return (0, "the beginning is not that of a stream".into());
    }
    let (mut random, promised) = (Random::new(number(8)), number(16));
    let (mut expected, mut piece) = (vec![0; PIECE], vec![0; PIECE]);
    let mut received = 0;
    loop {
        let (length, error) = read_piece(stream, &mut piece);
        let part = piece.get(..length).unwrap_or_default();
        random.fill(&mut expected);
        if let Some(hash) = &mut hash {
            hash.update(part);
        }
        if expected.get(..length) != Some(part) {
            let at = part
                .iter()
                .zip(&expected)
                .take_while(|(a, b)| a == b)
                .count();
            let at = received + at as u64;
            return (received + length as u64, format!("byte {at} differs"));
        }
        received += length as u64;
        if let Some(error) = error {
            return (received, format!("cut off: {error}"));
        }
        if length < PIECE || received > promised {
            break;
        }
    }
    if received == promised {
        (received, GOOD.into())
    } else {
        (received, format!("{promised} bytes were promised"))
    }
}

/// Reads as much as fits; less only at the end, or with the error that ended it.
fn read_piece(stream: &mut impl Read, piece: &mut [u8]) -> (usize, Option<std::io::Error>) {
    let mut length = 0;
    while let Some(rest) = piece.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return (length, Some(error)),
        }
    }
    (length, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(seed: u64, promised: u64, length: usize) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &seed.to_le_bytes(), &promised.to_le_bytes()].concat();
        let mut random = Random::new(seed);
        let mut rest = length;
        while rest > 0 {
            let mut piece = vec![0; PIECE];
            random.fill(&mut piece);
            piece.truncate(rest);
            rest -= piece.len();
            bytes.extend(piece);
        }
        bytes
    }

    fn verdict(bytes: &[u8]) -> (u64, String) {
        compare(&mut &bytes[..], None)
    }

    #[test]
    fn a_whole_stream_is_equal_whatever_its_length() {
        for length in [0, 1, 7, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let bytes = stream(5, length as u64, length);
            assert_eq!(verdict(&bytes), (length as u64, GOOD.into()));
        }
    }

    #[test]
    fn every_damage_is_named() {
        let length = PIECE + 100;
        let good = stream(5, length as u64, length);
        let mut flipped = good.clone();
        flipped[HEADER + PIECE + 50] ^= 1;
        assert_eq!(verdict(&flipped).1, format!("byte {} differs", PIECE + 50));
        let short = &good[..good.len() - 1];
        assert!(verdict(short).1.contains("promised"));
        let long = stream(5, 10, 11);
        assert_eq!(verdict(&long).1, "10 bytes were promised");
        assert!(verdict(&good[..3]).1.contains("no beginning"));
        assert!(verdict(&[b'x'; HEADER]).1.contains("not that of a stream"));
        // Another seed makes another stream.
        let mut other = good;
        other[8] ^= 1;
        assert_eq!(verdict(&other).1, "byte 0 differs");
    }

    #[test]
    fn both_sides_agree_and_say_the_same_hash() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let receiver = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hash = Sha256::new();
            let (received, verdict) = compare(&mut stream, Some(&mut hash));
            stream.write_all(verdict.as_bytes()).unwrap();
            (received, digest(Some(hash)))
        });
        send(target, 1_000_003, &Options::default()).unwrap();
        let mut whole = Sha256::new();
        whole.update(&stream(1, 0, 1_000_003)[HEADER..]);
        assert_eq!(receiver.join().unwrap(), (1_000_003, digest(Some(whole))));
    }
}
