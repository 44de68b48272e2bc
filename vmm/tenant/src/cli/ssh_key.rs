//! `--ssh-key`: public keys, from files or as they are.

use std::fs::File;
use std::io::Read;

use fief_agent_proto::is_public_key_line;

use super::{Error, Result};

/// No file of public keys is as large.
const LONGEST: u64 = 1 << 20;

/// The keys of all that was given.
///
/// # Errors
/// See [`read`].
pub fn read_all(given: &[String]) -> Result<Vec<String>> {
    let each: Result<Vec<_>> = given.iter().map(|given| read(given)).collect();
    Ok(each?.concat())
}

/// `base` with the keys of `more` that it lacks, and without those of `less`.
///
/// # Errors
/// One of `less` is not there.
pub fn change(base: &[String], more: Vec<String>, less: &[String]) -> Result<Vec<String>> {
    let mut all = base.to_vec();
    for key in more {
        // Other options or another comment take the place of those before.
        all.retain(|known| !is_same(known, &key));
        all.push(key);
    }
    for key in less {
        let before = all.len();
        all.retain(|known| !is_same(known, key));
        if all.len() == before {
            return Err(Error::new(format!(
                "the tenant has no such key: {key}; `fief inspect` shows those that it has (ssh_keys)"
            )));
        }
    }
    Ok(all)
}

/// Whether two lines hold the same key: what is before and after it says how it is used.
fn is_same(one: &str, other: &str) -> bool {
    let key = |line: &str| -> Option<String> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let mut pairs = words.windows(2).map(|pair| pair.join(" "));
        pairs.find(|pair| is_public_key_line(pair))
    };
    key(one).is_some() && key(one) == key(other)
}

/// The keys in a file, or those that `given` is itself, a line each.
///
/// # Errors
/// The file cannot be read, or holds something else: a private key, say.
pub fn read(given: &str) -> Result<Vec<String>> {
    if let Some(keys) = keys(given) {
        return Ok(keys);
    }
    let unreadable = |error: std::io::Error| {
        Error::new(format!(
            "--ssh-key {given} cannot be read: {error}; give a public key's file, such as ~/.ssh/id_ed25519.pub, or a whole key"
        ))
    };
    let mut text = Vec::new();
    File::open(given)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut text))
        .map_err(unreadable)?;
    let text = String::from_utf8_lossy(&text);
    // Said without a word of what is in it.
    if text.contains("PRIVATE KEY-----") || text.starts_with("PuTTY-User-Key-File") {
        return Err(Error::new(format!(
            "--ssh-key {given} is a private key, which is for its owner alone; give the public one, which ssh-keygen puts beside it as {given}.pub"
        )));
    }
    keys(&text).ok_or_else(|| {
        Error::new(format!(
            "--ssh-key {given} holds no public key, or something else besides; give a file that ssh-keygen made (its name ends in .pub)"
        ))
    })
}

/// The keys of a text that holds some, and nothing but comments besides.
fn keys(text: &str) -> Option<Vec<String>> {
    let lines: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let all = lines.iter().all(|line| is_public_key_line(line));
    (all && !lines.is_empty()).then_some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOPXvqWUhSzi20nt9hklbnyJagezvteBUtraBr9+Tcc8 a b";

    fn of_file(text: &str) -> Result<Vec<String>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path().to_str().unwrap())
    }

    #[test]
    fn a_key_is_given_by_file_or_as_it_is() {
        assert_eq!(read(KEY).unwrap(), [KEY]);
        assert_eq!(of_file(&format!("{KEY}\n")).unwrap(), [KEY]);
        let two = format!("# mine\n\n{KEY}\r\n  {KEY}\n");
        assert_eq!(of_file(&two).unwrap(), [KEY, KEY]);
        // As it is carried over.
        assert_eq!(read(&format!("{KEY}\n{KEY}")).unwrap(), [KEY, KEY]);
        assert_eq!(read_all(&[KEY.to_owned(), two]).unwrap().len(), 3);
    }

    #[test]
    fn keys_come_and_go_by_what_they_are_whatever_stands_beside_them() {
        let other = KEY.replace("OPXvqW", "OPXvqX");
        let base = [KEY.to_owned()];
        let both = change(&base, vec![other.clone()], &[]).unwrap();
        assert_eq!(both, [KEY, &other]);
        let renamed = KEY.replace("a b", "laptop");
        let again = change(&both, vec![renamed.clone()], &[]).unwrap();
        assert_eq!(again, [other.clone(), renamed]);
        let limited = format!("no-pty {KEY}");
        assert_eq!(change(&both, Vec::new(), &[limited]).unwrap(), [&*other]);
        let error = change(&base, Vec::new(), &[other]).unwrap_err().text();
        assert!(error.contains("no such key"), "{error}");
    }

    #[test]
    fn a_private_key_is_refused_and_not_repeated() {
        for text in [
            "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n",
            "-----BEGIN RSA PRIVATE KEY-----\nc2VjcmV0\n",
            "PuTTY-User-Key-File-3: ssh-ed25519\nc2VjcmV0\n",
        ] {
            let error = of_file(text).unwrap_err().text();
            assert!(
                error.contains("private key") && error.contains(".pub") && !error.contains("c2V"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_holds_no_key_is_named() {
        for text in [
            "",
            "# nothing\n",
            "ssh-ed25519 AAAA\n",
            &format!("{KEY}\nrubbish\n"),
        ] {
            let error = of_file(text).unwrap_err().text();
            assert!(error.contains("no public key"), "{error}");
        }
        let error = read("/no/such.pub").unwrap_err().text();
        assert!(
            error.contains("/no/such.pub") && error.contains("No such file"),
            "{error}"
        );
    }
}
