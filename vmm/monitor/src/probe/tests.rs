use super::*;

fn kernel_mode(speed: u64, missing: &[&'static str]) -> KernelMode {
    KernelMode {
        instructions_per_second: Some(speed),
        missing: missing.to_vec(),
    }
}

#[test]
fn a_fast_and_complete_kvm_runs_linux() {
    let verdict = judge(&kernel_mode(3_000_000_000, &[]), Some("kvm_amd"));
    assert!(verdict.linux_guests);
    assert!(
        verdict.why.contains("kvm_amd") && verdict.why.contains("3000 million"),
        "{}",
        verdict.why
    );
    assert!(judge(&kernel_mode(60_000_000, &[]), None).linux_guests);
}

#[test]
fn a_slow_or_incomplete_kvm_does_not_and_the_verdict_says_why() {
    let interpreted = judge(
        &kernel_mode(1_600_000, &["int3", "popcnt"]),
        Some("kvm_pvm"),
    );
    assert!(!interpreted.linux_guests);
    assert!(
        interpreted.why.contains("1.6 million"),
        "{}",
        interpreted.why
    );
    assert!(
        interpreted.why.contains("int3, popcnt"),
        "{}",
        interpreted.why
    );
    assert!(!judge(&kernel_mode(1_600_000, &[]), None).linux_guests);
    assert!(!judge(&kernel_mode(1_000_000_000, &["popcnt"]), None).linux_guests);
    assert!(!judge(&KernelMode::default(), None).linux_guests);
}

#[test]
fn a_missing_device_is_a_verdict_and_not_a_failure() {
    let report = report(&Files::new(), Path::new("/dev/no-such-kvm"));
    assert!(!report.verdict.linux_guests);
    assert!(
        report.verdict.why.contains("/dev/no-such-kvm"),
        "{}",
        report.verdict.why
    );
    assert_eq!(report.api_version, None);
}

#[test]
fn a_device_that_is_not_kvm_is_a_verdict_too() {
    let report = report(&Files::new(), Path::new("/dev/null"));
    assert!(!report.verdict.linux_guests);
    assert!(
        report.verdict.why.contains("/dev/null"),
        "{}",
        report.verdict.why
    );
}

#[test]
fn the_answer_is_json_with_a_verdict() {
    let answer: serde_json::Value = serde_json::from_str(&probe()).unwrap();
    assert!(answer["verdict"]["linux_guests"].is_boolean());
    assert!(!answer["verdict"]["why"].as_str().unwrap().is_empty());
}

#[test]
fn speeds_survive_the_way_to_the_report() {
    for speed in [0.0, 1_600_000.0, 7e9] {
        let written = whole(speed);
        assert!(
            (as_f64(written) - speed).abs() <= 1000.0,
            "{speed} {written}"
        );
    }
    assert_eq!(whole(f64::NAN), 0);
    assert_eq!(whole(f64::INFINITY), u64::from(u32::MAX) * 1000);
}
