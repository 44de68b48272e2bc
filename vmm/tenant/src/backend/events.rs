//! The monitor's event stream: one JSON object a line.

use serde::Deserialize;

use super::Event;
use crate::store::Reason;

#[derive(Deserialize)]
struct Line {
    event: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// Reads one line. Events that are new or of no concern are passed over: the process's end is known without them.
pub fn parse(line: &str) -> Option<Event> {
    let line: Line = serde_json::from_str(line).ok()?;
    match line.event.as_str() {
        "reboot" => Some(Event::Rebooted),
        "exit" => Some(Event::Ended(reason(line.reason.as_deref()?)?, line.message)),
        _ => None,
    }
}

fn reason(word: &str) -> Option<Reason> {
    Some(match word {
        "poweroff" => Reason::Poweroff,
        "reboot" => Reason::Reboot,
        "panic" => Reason::Panic,
        "triple-fault" => Reason::TripleFault,
        "stopped" => Reason::Killed,
        "failed" => Reason::Failed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_reboots_are_read_and_the_rest_is_passed_over() {
        assert_eq!(parse(r#"{"event":"reboot"}"#), Some(Event::Rebooted));
        assert_eq!(
            parse(r#"{"event":"exit","reason":"triple-fault"}"#),
            Some(Event::Ended(Reason::TripleFault, None))
        );
        assert_eq!(
            parse(r#"{"event":"exit","reason":"failed","message":"no memory"}"#),
            Some(Event::Ended(Reason::Failed, Some("no memory".to_owned())))
        );
        for other in [
            "",
            "{",
            r#"{"event":"exit","reason":"new"}"#,
            r#"{"event":"start"}"#,
            "[]",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
