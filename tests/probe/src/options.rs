//! The command line: words and options in any order.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::{Failure, Result};

/// How long to try, unless said otherwise.
const PATIENCE: Duration = Duration::from_secs(3);

/// What was given with `--`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    pub timeout: Option<Duration>,
    pub count: Option<u64>,
    pub bind: Option<IpAddr>,
    pub seed: Option<u64>,
    pub connect_only: bool,
    pub sha256: bool,
    pub background: bool,
    pub log: Option<String>,
}

impl Options {
    /// Takes the options out of `words`.
    ///
    /// # Errors
    /// [`Failure::Misuse`].
    pub fn parse(words: &[String]) -> Result<(Vec<&str>, Options)> {
        let (mut rest, mut options) = (Vec::new(), Options::default());
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let mut value = || words.next().map_or_else(|| need("a value"), Ok);
            match word {
                "--timeout" => {
                    options.timeout = Some(Duration::from_secs(number(value()?)?));
                }
                "--count" => options.count = Some(number(value()?)?),
                "--bind" => options.bind = Some(number(value()?)?),
                "--seed" => options.seed = Some(number(value()?)?),
                "--log" => options.log = Some(value()?.to_owned()),
                "--connect-only" => options.connect_only = true,
                "--sha256" => options.sha256 = true,
                "--background" => options.background = true,
                _ if word.starts_with("--") => {
                    return Err(Failure::Misuse(format!("there is no option {word}")));
                }
                _ => rest.push(word),
            }
        }
        Ok((rest, options))
    }

    /// When a client or a watcher gives up.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout.unwrap_or(PATIENCE)
    }

    /// When a server stops, if ever.
    pub fn end(&self) -> Option<Instant> {
        self.timeout.map(|timeout| Instant::now() + timeout)
    }
}

/// A word of some type.
///
/// # Errors
/// [`Failure::Misuse`] with the word.
pub fn number<T: FromStr>(word: &str) -> Result<T> {
    word.parse()
        .map_err(|_| Failure::Misuse(format!("'{word}' makes no sense here")))
}

/// Something is missing.
///
/// # Errors
/// Always [`Failure::Misuse`].
pub fn need<T>(what: &str) -> Result<T> {
    Err(Failure::Misuse(format!("{what} is missing")))
}

/// What is left until `deadline`; none when it has passed.
pub fn left(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_may_stand_anywhere() {
        let words = words("--timeout 9 tcp --count 2 a 5 --bind ::1 --connect-only");
        let (rest, options) = Options::parse(&words).unwrap();
        assert_eq!(rest, ["tcp", "a", "5"]);
        assert_eq!(
            options,
            Options {
                timeout: Some(Duration::from_secs(9)),
                count: Some(2),
                bind: Some("::1".parse().unwrap()),
                connect_only: true,
                ..Options::default()
            }
        );
    }

    #[test]
    fn nonsense_is_misuse_and_named() {
        for line in ["--timeout x", "--timeout", "--nope", "--bind 300.1.1.1"] {
            let error = Options::parse(&words(line)).unwrap_err();
            assert!(matches!(error, Failure::Misuse(_)), "{line}");
        }
        assert!(matches!(number::<u16>("70000"), Err(Failure::Misuse(_))));
    }
}
