use std::time::Duration;

use tracing::metadata::Kind;
use tracing::{callsite::DefaultCallsite, field::FieldSet};

use super::*;

static CALLSITE: DefaultCallsite = DefaultCallsite::new(&METADATA);
static METADATA: Metadata<'static> = Metadata::new(
    "event",
    "fief_vmm::server",
    Level::WARN,
    Some("server.rs"),
    Some(7),
    Some("fief_vmm::server"),
    FieldSet::new(&["message"], tracing::callsite::Identifier(&CALLSITE)),
    Kind::EVENT,
);

fn style() -> Style {
    Style {
        id: "vm-1".to_owned(),
        level: LevelFilter::INFO,
        show_level: false,
        show_origin: false,
        module: None,
    }
}

fn at(seconds: u64, nanos: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
}

#[test]
fn times_are_calendar_dates() {
    for (seconds, nanos, expected) in [
        (0, 0, "1970-01-01T00:00:00.000000000Z"),
        (951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999Z"),
        (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
        (1_541_568_865, 180_751_152, "2018-11-07T05:34:25.180751152Z"),
        (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        (13_574_563_200, 0, "2400-02-29T00:00:00.000000000Z"),
        (1_767_225_599, 0, "2025-12-31T23:59:59.000000000Z"),
    ] {
        assert_eq!(time::Utc(at(seconds, nanos)).to_string(), expected);
    }
}

#[test]
fn a_line_shows_what_was_asked_for() {
    let mut style = style();
    let line = |style: &Style| style.line(at(0, 0), &METADATA, "hello", 0);
    let thread = std::thread::current().name().unwrap().to_owned();
    let start = format!("1970-01-01T00:00:00.000000000Z [vm-1:{thread}");
    assert_eq!(line(&style), format!("{start}] hello\n"));
    style.apply(&fief_api::Logger {
        show_level: Some(true),
        show_log_origin: Some(true),
        ..fief_api::Logger::default()
    });
    assert_eq!(line(&style), format!("{start}:WARN:server.rs:7] hello\n"));
}

#[test]
fn a_message_stays_one_line_of_bounded_length() {
    let forged = style().line(at(0, 0), &METADATA, "a\nb\r\x1b[2Jc", 0);
    assert_eq!(forged.matches('\n').count(), 1);
    assert!(!forged.contains('\x1b') && !forged.contains('\r'));
    let long = style().line(at(0, 0), &METADATA, &"é".repeat(10_000), 3);
    assert!(long.len() < LINE_MAX + 60, "{}", long.len());
    assert!(long.ends_with("(3 more like this were left out)\n"));
}

#[test]
fn levels_and_modules_decide_what_is_logged() {
    let mut style = style();
    assert!(style.wants(&METADATA));
    for (level, wanted) in [
        (LogLevel::Off, false),
        (LogLevel::Error, false),
        (LogLevel::Warning, true),
        (LogLevel::Trace, true),
    ] {
        style.level = filter(level);
        assert_eq!(style.wants(&METADATA), wanted, "{level:?}");
    }
    for (module, wanted) in [
        ("fief_vmm", true),
        ("fief_vmm::server", true),
        ("fief_vmm::serv", false),
        ("fief_devices", false),
    ] {
        style.module = Some(module.to_owned());
        assert_eq!(style.wants(&METADATA), wanted, "{module}");
    }
}

#[test]
fn what_is_left_out_of_the_settings_stays() {
    let mut style = style();
    style.module = Some("m".to_owned());
    let before = style.clone();
    style.apply(&fief_api::Logger::default());
    assert_eq!(style, before);
}

#[test]
fn one_place_cannot_flood_the_log() {
    let mut limits = Limits::new();
    let place = METADATA.callsite();
    let start = Instant::now();
    for _ in 0..BURST {
        assert_eq!(limits.admit(&place, start), Some(0));
    }
    for _ in 0..1000 {
        assert_eq!(limits.admit(&place, start + WINDOW / 2), None);
    }
    assert_eq!(limits.admit(&place, start + WINDOW), Some(1000));
    assert_eq!(limits.admit(&place, start + WINDOW), Some(0));
}

#[test]
fn a_log_file_that_cannot_be_opened_changes_nothing() {
    let settings = fief_api::Logger {
        log_path: Some("/no/such/log".to_owned()),
        level: Some(LogLevel::Off),
        ..fief_api::Logger::default()
    };
    let before = state().style.clone();
    let error = configure(&settings, &Files::new()).unwrap_err();
    assert!(error.to_string().contains("/no/such/log"));
    assert_eq!(state().style, before);
}
