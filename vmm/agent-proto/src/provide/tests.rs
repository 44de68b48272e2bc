use super::*;

/// Made for this test; nobody has their other halves.
const ED25519: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOPXvqWUhSzi20nt9hklbnyJagezvteBUtraBr9+Tcc8 test key";
const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBK+KeJZIFqM6J49Ck3wbhPEHjsbT6TPkh4mH+2WrEMw3TZWDrXGNpMA/dc26bM1LzbgNWQFdoQhwzVFFqdsxYj0= a@b";

fn login(name: &str, keys: &[&str]) -> Provide {
    Provide {
        login: Some(Login {
            name: name.into(),
            keys: keys.iter().map(|&key| key.into()).collect(),
        }),
        ..Provide::default()
    }
}

#[test]
fn keys_with_options_and_comments_are_taken() {
    let options = format!("from=\"10.0.0.0/8\",no-pty {ED25519}");
    for good in [ED25519, ECDSA, &options] {
        assert!(is_public_key_line(good), "{good}");
    }
}

#[test]
fn what_is_no_key_is_not_taken() {
    let cut = &ED25519[..40];
    let other_kind = ED25519.replacen("ed25519", "rsa", 1);
    let two = format!("{ED25519}\n{ECDSA}");
    let comment = format!("# {ED25519}");
    let long = format!("{ED25519} {}", "x".repeat(LONGEST_KEY));
    for bad in [
        "",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "ssh-ed25519",
        "ssh-ed25519 ????",
        cut,
        &other_kind,
        &two,
        &comment,
        &long,
    ] {
        assert!(!is_public_key_line(bad), "{bad}");
    }
}

#[test]
fn base64_is_that_of_the_rfc() {
    // RFC 4648 §10.
    let all = [
        ("", ""),
        ("Zg==", "f"),
        ("Zm8=", "fo"),
        ("Zm9v", "foo"),
        ("Zm9vYg==", "foob"),
        ("Zm9vYmFy", "foobar"),
    ];
    for (text, bytes) in all {
        assert_eq!(decode(text).unwrap(), bytes.as_bytes());
    }
    for bad in ["Zg", "Zg=", "Z===", "Zm9v====", "Zm-v", "Zm9v Zm9v"] {
        assert_eq!(decode(bad), None, "{bad}");
    }
}

#[test]
fn names_and_logins_cannot_break_out_of_their_lines() {
    assert_eq!(login("alice", &[ED25519, ECDSA]).check(), Ok(()));
    for bad in [
        "",
        "a:b",
        "a\nb",
        "-a",
        "1a",
        "A",
        "a.b",
        "../a",
        &"a".repeat(33),
    ] {
        let refused = login(bad, &[]).check();
        assert_eq!(refused, Err(ProvideError::Login(bad.into())));
    }
    assert_eq!(
        login("a", &[ED25519, "x"]).check(),
        Err(ProvideError::Key(2))
    );
    let many = vec![ED25519; MAX_KEYS + 1];
    assert_eq!(
        login("a", &many).check(),
        Err(ProvideError::Keys(MAX_KEYS + 1))
    );
    let named = |name: &str, count| Provide {
        names: vec![("10.99.0.2".parse().unwrap(), name.to_owned()); count],
        login: None,
    };
    assert_eq!(named("bob.fief", MAX_NAMES).check(), Ok(()));
    assert_eq!(
        named("a", MAX_NAMES + 1).check(),
        Err(ProvideError::Names(MAX_NAMES + 1))
    );
    for bad in ["", "a b", "a\n10.0.0.1 c", "a#b", "ä", &"a".repeat(254)] {
        assert_eq!(named(bad, 1).check(), Err(ProvideError::Name(bad.into())));
    }
}
