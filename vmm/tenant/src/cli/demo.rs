//! `fief demo`: the real command line, run as a person would, and every command shown.

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use super::{Context, Error, Result};
use crate::terminal::output;

/// The two tenants.
const NAMES: [&str; 2] = ["demo-alice", "demo-bob"];
/// Processes per tenant that wait for a crash to be noticed look this often, at most.
const LOOKS: u32 = 200;

/// Flags of `fief demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Image of the two tenants
    #[arg(long, value_name = "IMAGE", default_value = "debian")]
    image: String,
    /// Leave the tenants there
    #[arg(long)]
    keep: bool,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let demo = Demo::new(context)?;
    let begun = Instant::now();
    demo.quietly(&["rm", "-f", NAMES[0]]);
    demo.quietly(&["rm", "-f", NAMES[1]]);
    let shown = demo.show(&args.image);
    if !args.keep {
        output("\nCleaning up.\n")?;
        for name in NAMES {
            demo.quietly(&["rm", "-f", name]);
        }
    }
    shown?;
    output(&format!(
        "\nAll of it worked, in {:.1} s. Next: `fief run --rm -it` or `fief --help`.\n",
        begun.elapsed().as_secs_f64()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs this same binary, with the flags this process has.
struct Demo {
    binary: std::path::PathBuf,
    state: std::path::PathBuf,
    host: &'static str,
}

impl Demo {
    fn new(context: &Context) -> Result<Self> {
        let decision = context.decide();
        let host = if decision.kind == fief_host::HostKind::Emulated {
            "emulated"
        } else {
            "native"
        };
        output(&format!(
            "This shows two Linux tenants, each with a kernel of its own.\n\
             They run on the {host} host: {}.\n\
             The first time, images are made: that takes some minutes.\n",
            decision.why
        ))?;
        Ok(Self {
            binary: std::env::current_exe()?,
            state: context.state().to_owned(),
            host,
        })
    }

    fn show(&self, image: &str) -> Result<()> {
        let [alice, bob] = NAMES;
        self.say("Two tenants:")?;
        for name in NAMES {
            self.fief(&["run", "-d", "--name", name, "--image", image])?;
        }
        self.fief(&["ps"])?;
        self.say("Each has its own Linux, and root in it:")?;
        for name in NAMES {
            let script = if image == "debian" {
                "uname -nr; id; grep PRETTY_NAME /etc/os-release"
            } else {
                "uname -nr; id"
            };
            self.fief(&["exec", name, "--", "sh", "-c", script])?;
        }
        if image == "debian" {
            self.say("An ordinary user in it may become root:")?;
            self.fief(&[
                "exec",
                "--user",
                "user",
                alice,
                "--",
                "sh",
                "-c",
                "id -un; sudo id -un",
            ])?;
        }
        self.say("Now Alice crashes her kernel:")?;
        // The connection is lost with the kernel: that is the point.
        self.fief_may_fail(&[
            "exec",
            alice,
            "--",
            "sh",
            "-c",
            "echo c > /proc/sysrq-trigger",
        ])?;
        self.await_crash(alice)?;
        self.fief(&["ps", "-a"])?;
        self.say("Bob has not noticed:")?;
        self.fief(&[
            "exec",
            bob,
            "--",
            "sh",
            "-c",
            "echo still here, up for $(cut -d' ' -f1 /proc/uptime) s",
        ])?;
        self.say("Alice starts again, with her files:")?;
        self.fief(&["start", alice])?;
        self.fief(&["exec", alice, "--", "uname", "-n"])
    }

    fn say(&self, text: &str) -> Result<()> {
        Ok(output(&format!("\n{text}\n"))?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(["--host", self.host, "--state-dir"])
            .arg(&self.state)
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Shows a command line and runs it.
    fn fief(&self, arguments: &[&str]) -> Result<()> {
        let code = self.fief_may_fail(arguments)?;
        if code == Some(0) {
            return Ok(());
        }
        Err(Error::new(format!(
            "the demo stopped: `{}` failed; `fief doctor` may tell why",
            line(arguments)
        )))
    }

    fn fief_may_fail(&self, arguments: &[&str]) -> Result<Option<i32>> {
        output(&format!("$ {}\n", line(arguments)))?;
        let begun = Instant::now();
        let status = self.command(arguments).status()?;
        output(&format!("  ({:.1} s)\n", begun.elapsed().as_secs_f64()))?;
        Ok(status.code())
    }

    fn quietly(&self, arguments: &[&str]) {
        let _ = self
            .command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }

    /// Waits until the crash is known.
    fn await_crash(&self, name: &str) -> Result<()> {
        for _ in 0..LOOKS {
            let seen = self
                .command(&["inspect", name])
                .stderr(Stdio::null())
                .output()?;
            let seen: serde_json::Value = serde_json::from_slice(&seen.stdout).unwrap_or_default();
            if seen["exit"]["reason"] == "panic" {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Err(Error::new(
            "the demo stopped: the crash was not reported; `fief ps -a` and `fief logs` may tell more",
        ))
    }
}

/// A command line as a person would type it.
fn line(arguments: &[&str]) -> String {
    let quoted = |word: &&str| {
        let plain = word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./=:,".contains(c));
        if plain {
            (*word).to_owned()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    let words: Vec<_> = arguments.iter().map(quoted).collect();
    format!("fief {}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_line_can_be_typed_again() {
        assert_eq!(
            line(&["exec", "a", "--", "sh", "-c", "echo it's $HOME"]),
            "fief exec a -- sh -c 'echo it'\\''s $HOME'"
        );
    }
}
