//! `fief-test-driver`: one static program that drives PCI functions from user space, for the tests of passthrough. It runs
//! in tenants, on devices that they were given, and in the emulated host.

mod canary;
mod edu;
mod fill;
mod function;
mod memory;
mod msi;

use std::io;
use std::process::ExitCode;

use function::Function;

const HELP: &str = "\
fief-test-driver: drives PCI functions from user space, by the kernel's files about them

  read ADDR BAR OFFSET           four bytes of a BAR, in hexadecimal
  write ADDR BAR OFFSET VALUE    four bytes to a BAR
  fill ADDR BAR COUNT            write COUNT words all over a BAR, and read them back
  edu-copy ADDR                  2 KiB from a page to the teaching device and back to another page, by its DMA
  edu-store ADDR PHYSICAL        2 KiB of 0xa5 from the teaching device to a physical address, by its DMA
  msi ADDR VECTOR                switch MSI on, one message: this vector of CPU 0
  canary                         print the physical address of a page full of 0x5a, and at the end of the input what is in it

Numbers may be hexadecimal (0x). Exit code: 0 it worked, 1 it did not, 2 misuse.";

/// Why something did not work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
    /// The device did something else than it should.
    #[error("{0}")]
    Wrong(String),
    #[error("{0}; `fief-test-driver --help` tells more")]
    Misuse(String),
}

type Result<T> = std::result::Result<T, Failure>;

/// Names what the kernel refused.
fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure::System {
        what: what.into(),
        source,
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("fief-test-driver: {failure}");
            ExitCode::from(match failure {
                Failure::Misuse(_) => 2,
                Failure::System { .. } | Failure::Wrong(_) => 1,
            })
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match *words {
        ["read", address, bar, offset] => {
            let bar = Function::open(address)?.bar(number(bar)?)?;
            println!("{:#x}", bar.read32(number(offset)?)?);
            Ok(())
        }
        ["write", address, bar, offset, value] => {
            let bar = Function::open(address)?.bar(number(bar)?)?;
            bar.write32(number(offset)?, number(value)?)
        }
        ["fill", address, bar, count] => {
            let bar = Function::open(address)?.bar(number(bar)?)?;
            fill::run(&bar, number(count)?)
        }
        ["edu-copy", address] => edu::copy(&Function::open(address)?),
        ["edu-store", address, physical] => {
            edu::store(&Function::open(address)?, number(physical)?)
        }
        ["msi", address, vector] => msi::enable(&Function::open(address)?, number(vector)?),
        ["canary"] => canary::run(),
        [] | ["--help" | "-h"] => {
            println!("{HELP}");
            Ok(())
        }
        [command, ..] => Err(Failure::Misuse(format!(
            "'{command}' is no command with these arguments"
        ))),
    }
}

/// A number in decimal, or in hexadecimal after `0x`.
fn number<T: TryFrom<u64>>(word: &str) -> Result<T> {
    let value = match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    let value = value.ok().and_then(|value| T::try_from(value).ok());
    value.ok_or_else(|| Failure::Misuse(format!("'{word}' is no number that fits here")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal_and_must_fit() {
        assert_eq!(number::<u64>("0x100000000").unwrap(), 1 << 32);
        assert_eq!(number::<u8>("255").unwrap(), 255);
        for wrong in ["", "0x", "256", "-1", "ten"] {
            assert!(
                matches!(number::<u8>(wrong), Err(Failure::Misuse(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_is_no_command_is_misuse() {
        for words in [&["read"][..], &["jump"], &["read", "00:01.0", "x", "0"]] {
            assert!(run(words).is_err(), "{words:?}");
        }
    }
}
