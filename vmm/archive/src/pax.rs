//! Records of the pax format (POSIX.1-2017, pax, "pax Extended Header"): `LENGTH KEY=VALUE\n`, where a value may hold anything.

use crate::Error;

/// Keys of records that only [`diff`](crate::diff()) and [`apply`](crate::apply()) use.
pub const SIZE: &str = "FIEF.size";
/// `OFFSET:LENGTH,…`, rising, of what is in the entry.
pub const EXTENTS: &str = "FIEF.extents";
/// Before the name of an extended attribute, as GNU tar, star and bsdtar have it.
pub const ATTRIBUTE: &str = "SCHILY.xattr.";

/// Seconds since 1970 and nanoseconds, which are never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

const GIGA: u32 = 1_000_000_000;

impl Time {
    pub fn text(self) -> String {
        match self {
            // Digits after the point lead away from zero.
            Self {
                seconds: ..0,
                nanoseconds: nanoseconds @ 1..,
            } => format!(
                "-{}.{:09}",
                (self.seconds + 1).unsigned_abs(),
                GIGA - nanoseconds
            ),
            Self {
                seconds,
                nanoseconds,
            } => format!("{seconds}.{nanoseconds:09}"),
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (sign, plain) = match text.strip_prefix('-') {
            Some(plain) => (-1, plain),
            None => (1, text),
        };
        let (whole, part) = plain.split_once('.').unwrap_or((plain, ""));
        let seconds: i64 = whole.parse().ok().filter(|seconds| *seconds >= 0)?;
        let digits = part.get(..part.len().min(9))?;
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let nanoseconds: u32 = format!("{digits:0<9}").parse().ok()?;
        Some(match (sign, nanoseconds) {
            (1, _) => Self {
                seconds,
                nanoseconds,
            },
            (_, 0) => Self {
                seconds: -seconds,
                nanoseconds,
            },
            _ => Self {
                seconds: (-seconds).checked_sub(1)?,
                nanoseconds: GIGA - nanoseconds,
            },
        })
    }
}

/// Adds a record.
pub fn push(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // Space, equals sign, line end; the length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Key and value of each record.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), Error>> {
    let mut left = bytes;
    std::iter::from_fn(move || {
        // Some writers pad with zeros.
        if left.first().is_none_or(|byte| *byte == 0) {
            return None;
        }
        let (record, rest) = first(left).unzip();
        left = rest.unwrap_or_default();
        Some(record.ok_or_else(|| Error::Format("a pax record that is none".to_owned())))
    })
}

type Record<'a> = (&'a [u8], &'a [u8]);

fn first(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((&record[..equals], &record[equals + 1..]), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_hold_anything() {
        let mut bytes = Vec::new();
        let long = vec![b'\n'; 990];
        let all: [(&[u8], &[u8]); 4] = [
            (b"path", b"a\nb=c \xff"),
            (b"x", b""),
            (b"y", &long),
            (b"z", b"1"),
        ];
        for (key, value) in all {
            push(&mut bytes, key, value);
        }
        let read: Vec<_> = records(&bytes).map(Result::unwrap).collect();
        assert_eq!(read, all);
        bytes.push(0);
        assert_eq!(records(&bytes).count(), 4);
    }

    #[test]
    fn what_is_no_record_is_an_error_and_the_end() {
        for bad in [
            "x", "7 a=b", "99 a=b\n", "3 \n", "6 abc\n", "0 a=b\n", "2 a=b\n", "-6 a=b\n",
        ] {
            let read: Vec<_> = records(bad.as_bytes()).collect();
            assert!(matches!(read[..], [Err(_)]), "{bad:?}: {read:?}");
        }
    }

    #[test]
    fn times_come_back_whatever_side_of_1970_they_are_on() {
        let time = |seconds, nanoseconds| Time {
            seconds,
            nanoseconds,
        };
        for (time, text) in [
            (time(0, 0), "0.000000000"),
            (time(1_700_000_000, 123_456_789), "1700000000.123456789"),
            (time(-1, 0), "-1.000000000"),
            (time(-1, 999_999_999), "-0.000000001"),
            (time(-2, 500_000_000), "-1.500000000"),
            (time(i64::MAX, 1), "9223372036854775807.000000001"),
        ] {
            assert_eq!(time.text(), text);
            assert_eq!(Time::parse(text), Some(time));
        }
        assert_eq!(Time::parse("5"), Some(time(5, 0)));
        assert_eq!(Time::parse("5.1234567891"), Some(time(5, 123_456_789)));
        for bad in ["", "-", "x", "1.x", "--1", "1.-1", "99999999999999999999"] {
            assert_eq!(Time::parse(bad), None, "{bad}");
        }
    }
}
