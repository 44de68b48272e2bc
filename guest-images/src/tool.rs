//! Programs of the host that this crate starts, and the packages they come from.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Lines of a failed program's output that its error carries.
const KEPT_LINES: usize = 12;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the program `{program}` is missing: install it with `apt-get install {package}`")]
    Missing {
        program: &'static str,
        package: &'static str,
    },
    #[error("`{program}` cannot be started")]
    Start {
        program: &'static str,
        source: std::io::Error,
    },
    #[error("`{program}` failed ({status}): {output}")]
    Failed {
        program: &'static str,
        status: ExitStatus,
        output: String,
    },
}

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    pub program: &'static str,
    pub package: &'static str,
}

impl Tool {
    /// Where the program is. `sbin` directories are searched too: a user's PATH often lacks them.
    pub fn find(&self) -> Result<PathBuf, Error> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let extra = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
        std::env::split_paths(&path)
            .chain(extra)
            .map(|dir| dir.join(self.program))
            .find(|candidate| is_executable(candidate))
            .ok_or(Error::Missing {
                program: self.program,
                package: self.package,
            })
    }

    /// Standard output of the program as text, once it has ended well.
    pub fn output<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String, Error> {
        let bytes = self.bytes(arguments)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// As `output`, of a copy of the program at `path`.
    pub fn output_of<S: AsRef<OsStr>>(
        &self,
        path: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String, Error> {
        let bytes = self.collect(Self::prepare(Command::new(path)), arguments)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Standard output of the program, once it has ended well.
    pub fn bytes<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Vec<u8>, Error> {
        self.collect(self.command()?, arguments)
    }

    fn collect<S: AsRef<OsStr>>(
        &self,
        mut command: Command,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Vec<u8>, Error> {
        command.args(arguments).stderr(Stdio::piped());
        let output = command.output().map_err(|source| Error::Start {
            program: self.program,
            source,
        })?;
        if !output.status.success() {
            return Err(self.failed(
                output.status,
                last_lines(&String::from_utf8_lossy(&output.stderr)),
            ));
        }
        Ok(output.stdout)
    }

    /// Runs the program and hands every line it prints (both streams) to `line`.
    pub fn run(
        &self,
        setup: impl FnOnce(&mut Command),
        mut line: impl FnMut(&str),
    ) -> Result<(), Error> {
        let start = |source| Error::Start {
            program: self.program,
            source,
        };
        let mut command = self.command()?;
        setup(&mut command);
        let (reader, writer) = std::io::pipe().map_err(start)?;
        command
            .stdout(writer.try_clone().map_err(start)?)
            .stderr(writer);
        let mut child = command.spawn().map_err(start)?;
        // The command holds the pipe's write ends: without this the reader would never see the end.
        drop(command);
        let mut kept = VecDeque::new();
        for text in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&text).into_owned();
            line(&text);
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(text);
        }
        let status = child.wait().map_err(start)?;
        if !status.success() {
            return Err(self.failed(status, kept.into_iter().collect::<Vec<_>>().join("; ")));
        }
        Ok(())
    }

    fn command(&self) -> Result<Command, Error> {
        Ok(Self::prepare(Command::new(self.find()?)))
    }

    fn prepare(mut command: Command) -> Command {
        // A group of its own: mmdebstrap, told to end, ends its whole group, and that must not be its starter's.
        command
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .process_group(0);
        // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call.
        unsafe {
            command.pre_exec(|| {
                // A builder whose starter was killed would write on into a directory that the next one cleans.
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?;
                Ok(())
            });
        }
        command
    }

    fn failed(&self, status: ExitStatus, output: String) -> Error {
        Error::Failed {
            program: self.program,
            status,
            output,
        }
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(KEPT_LINES)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SH: Tool = Tool {
        program: "sh",
        package: "dash",
    };

    #[test]
    fn a_missing_program_names_the_package_that_has_it() {
        let tool = Tool {
            program: "no-such-program",
            package: "some-package",
        };
        let message = tool.output(["x"]).unwrap_err().to_string();
        assert!(
            message.contains("no-such-program") && message.contains("apt-get install some-package"),
            "{message}"
        );
    }

    #[test]
    fn a_failure_carries_what_the_program_said_last() {
        let failed = SH.run(
            |c| {
                c.args(["-c", "seq 100; echo gone wrong >&2; exit 3"]);
            },
            |_| (),
        );
        let message = failed.unwrap_err().to_string();
        assert!(
            message.contains("gone wrong") && message.contains('3') && !message.contains(" 80;"),
            "{message}"
        );
    }

    #[test]
    fn every_line_of_both_streams_is_handed_over() {
        let mut lines = Vec::new();
        let script = "echo a; echo b >&2; printf c";
        SH.run(
            |c| {
                c.args(["-c", script]);
            },
            |l| lines.push(l.to_owned()),
        )
        .unwrap();
        assert_eq!(lines, ["a", "b", "c"]);
    }

    #[test]
    fn a_program_that_ends_its_group_does_not_end_its_starter() {
        let ended = SH.output(["-c", "kill -TERM 0; exit 0"]);
        assert!(matches!(ended, Err(Error::Failed { .. })));
    }
}
