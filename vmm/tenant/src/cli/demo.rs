//! `fief demo`: the real command line, run as a person would, and every command shown.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use super::{Context, Error, Result};
use crate::spec::Bytes;
use crate::store::Reason;
use crate::table::table;
use crate::terminal::output;

/// The two tenants: one in a virtual machine, one in a container.
const NAMES: [&str; 2] = ["demo-alice", "demo-bob"];
/// How often the demo looks whether a crash was noticed, at most.
const LOOKS: u32 = 200;
/// A kernel makes one up when it boots: it tells kernels of the same release apart.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where each tenant listens.
const PORT: &str = "7000";

/// A package whose program greets, made in the tenant: an emulated host has no network to fetch one from.
const PACKAGE: &str = "set -e
    mkdir -p /tmp/greeting/DEBIAN /tmp/greeting/usr/bin; cd /tmp/greeting
    printf '%s\\n' 'Package: greeting' 'Version: 1' 'Architecture: all' 'Maintainer: fief' 'Description: hello' > DEBIAN/control
    printf '#!/bin/sh\\necho hello, installed by apt\\n' > usr/bin/greeting; chmod 755 usr/bin/greeting
    dpkg-deb --root-owner-group --build . /tmp/greeting.deb";

/// Ends once it listens, and goes on in the background: whoever connects is told the tenant's name.
const SERVER: &str = "use IO::Socket::INET; use Sys::Hostname;
    my $listener = IO::Socket::INET->new(LocalPort => shift, Listen => 9) or die; exit if fork;
    open STDIN, '<', '/dev/null'; open STDOUT, '>', '/dev/null'; open STDERR, '>', '/dev/null';
    while (my $client = $listener->accept) { print $client 'this is ' . hostname . qq(\\n); close $client }";

/// Flags of `fief demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Image of the two tenants; with another than debian, apt and the network are left out
    #[arg(long, value_name = "IMAGE", default_value = "debian")]
    image: String,
    /// Leave the tenants there
    #[arg(long)]
    keep: bool,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let demo = Demo::new(context)?;
    let begun = Instant::now();
    for name in NAMES {
        demo.quietly(&["rm", "-f", name]);
    }
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

/// How a command that was shown ended.
struct Ended {
    code: Option<i32>,
    /// Its standard output, without the last line end.
    out: String,
    took: Duration,
}

/// What is told of a tenant in the end.
struct Figures {
    /// From the beginning of `fief start` to the end of a first command.
    start: Duration,
    memory: Bytes,
    /// Of a command that ended with 7.
    code: i32,
}

impl Demo {
    fn new(context: &Context) -> Result<Self> {
        let decision = context.decide();
        let (host, why) = if decision.kind == fief_host::HostKind::Emulated {
            ("emulated", decision.why)
        } else if nix::unistd::geteuid().is_root() {
            ("native", decision.why)
        } else {
            let why = "containers and networks take root, which everybody is in there";
            ("emulated", why.to_owned())
        };
        output(&format!(
            "This shows two Linux tenants of one image: alice in a virtual machine, with a kernel of her own, and bob in\n\
             a container, on the host's kernel. They run on the {host} host: {why}.\n\
             The first time, images are made: that takes some minutes.\n"
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
        self.fief(&["create", alice, "--image", image])?;
        self.fief(&["create", bob, "--isolation", "container", "--image", image])?;
        self.say(
            "Each has its own Linux, and root in it. The last line is a kernel's boot: alice's is her own.",
        )?;
        let hosts = self.boot_of_host()?;
        let measured = [self.begin(alice, &hosts)?, self.begin(bob, &hosts)?];
        self.fief(&["ps"])?;
        if image == "debian" {
            self.install()?;
            self.meet()?;
        }
        self.crash(&hosts)?;
        let alices = self.end_of(alice)?;
        self.say("Alice starts again, with her files; bob is stopped:")?;
        self.fief(&["start", alice])?;
        let hers = if image == "debian" { "greeting" } else { "id" };
        self.fief(&["exec", alice, "--", hers])?;
        self.fief(&["stop", bob])?;
        let bobs = self.end_of(bob)?;
        self.holds(bobs == Reason::Poweroff, "bob shuts down")?;
        self.compare(&measured, [alices, bobs])
    }

    /// Starts a tenant, looks at it and measures it.
    fn begin(&self, name: &str, hosts: &str) -> Result<Figures> {
        let started = self.fief(&["start", name])?.took;
        let script = format!("uname -r; id; cat {BOOT_ID}");
        let said = self.fief(&["exec", name, "--", "sh", "-c", &script])?;
        let on_hosts = said.out.lines().last() == Some(hosts);
        self.holds(
            on_hosts == (name == NAMES[1]),
            "alice has a kernel of her own, and bob the host's",
        )?;
        self.holds(said.out.contains("uid=0(root)"), "a tenant has root")?;
        let memory = self.memory(name)?;
        let code = self.run(&["exec", name, "--", "sh", "-c", "exit 7"])?.code;
        self.holds(code == Some(7), "the code of a command is passed on")?;
        Ok(Figures {
            start: started + said.took,
            memory,
            code: 7,
        })
    }

    /// apt, as an ordinary user who may sudo.
    fn install(&self) -> Result<()> {
        self.say("An ordinary user of each installs a package (one made in the tenant: there may be no network):")?;
        for name in NAMES {
            let user = ["exec", "--user", "user", name, "--", "sh", "-c"];
            let line = |script| [&user[..], &[script]].concat();
            let made = self.quietly(&line(PACKAGE));
            self.holds(made, "a package can be made")?;
            self.fief(&line(
                "sudo apt-get install -qq -y /tmp/greeting.deb > /dev/null",
            ))?;
            let said = self.fief(&["exec", name, "--", "greeting"])?;
            self.holds(
                said.out.contains("installed by apt"),
                "the package is there",
            )?;
        }
        Ok(())
    }

    /// Neighbours do not reach each other but by a grant, which is for one direction and one port.
    fn meet(&self) -> Result<()> {
        let [alice, bob] = NAMES;
        self.say("Both listen at a port. Neither reaches the other:")?;
        for name in NAMES {
            let listens = self.quietly(&["exec", name, "--", "perl", "-e", SERVER, PORT]);
            self.holds(listens, "a tenant can listen")?;
        }
        let [alices, bobs] = [self.address(alice)?, self.address(bob)?];
        self.tries(bob, &alices, None)?;
        self.tries(alice, &bobs, None)?;
        self.say("A grant lets bob in to alice, under a name, and not alice in to bob:")?;
        self.fief(&["grant", alice, "--to", bob, "--port", PORT])?;
        self.tries(bob, &format!("{alice}.fief"), Some(alice))?;
        self.tries(alice, &bobs, None)?;
        self.say("Until there is one for her, too:")?;
        self.fief(&["grant", bob, "--to", alice, "--port", PORT])?;
        self.tries(alice, &format!("{bob}.fief"), Some(bob))
    }

    /// A tenant connects to an address, and gets to whom it is to get, or to nobody.
    fn tries(&self, from: &str, address: &str, expected: Option<&str>) -> Result<()> {
        let script = format!("cat < /dev/tcp/{address}/{PORT}");
        let line = ["exec", from, "--", "timeout", "9", "bash", "-c", &script];
        let said = self.run(&line)?;
        let greeting = expected.map_or_else(String::new, |name| format!("this is {name}"));
        self.holds(
            said.out == greeting && (said.code == Some(0)) == expected.is_some(),
            "a tenant reaches those who were granted to it, and no others",
        )
    }

    fn crash(&self, hosts: &str) -> Result<()> {
        let [alice, bob] = NAMES;
        self.say("Now alice crashes her kernel:")?;
        let crash = "echo c > /proc/sysrq-trigger";
        // The connection is lost with the kernel: that is the point.
        self.run(&["exec", alice, "--", "sh", "-c", crash])?;
        self.await_crash(alice)?;
        self.fief(&["ps", "-a"])?;
        self.say("Bob has not noticed, and neither has the host, whose kernel is his:")?;
        let script = format!("echo still here; cat {BOOT_ID}");
        let said = self.fief(&["exec", bob, "--", "sh", "-c", &script])?;
        let same = said.out.lines().last() == Some(hosts) && self.boot_of_host()? == hosts;
        self.holds(same, "the host runs on")
    }

    fn compare(&self, measured: &[Figures; 2], ends: [Reason; 2]) -> Result<()> {
        let row = |what: &str, [alice, bob]: [String; 2]| vec![what.to_owned(), alice, bob];
        let each = |cell: fn(&Figures) -> String| measured.each_ref().map(cell);
        let rows = [
            row("kernel", ["its own", "the host's"].map(str::to_owned)),
            row(
                "start and first command",
                each(|one| format!("{:.1} s", one.start.as_secs_f64())),
            ),
            row("memory when idle", each(|one| one.memory.to_string())),
            row("code of `exit 7`", each(|one| one.code.to_string())),
            row("how it ended", ends.map(|end| end.words().to_owned())),
        ];
        Ok(output(&format!(
            "\n{}Memory is the host's, as `fief stats` counts it: of the tenant with all that is in it, its kernel, monitor\n\
             and shim, and of the files that they have read.\n",
            table(&["", NAMES[0], NAMES[1]], rows)
        ))?)
    }

    fn say(&self, text: &str) -> Result<()> {
        Ok(output(&format!("\n{text}\n"))?)
    }

    /// What is told is checked, too.
    fn holds(&self, it_does: bool, what: &str) -> Result<()> {
        if it_does {
            return Ok(());
        }
        Err(stopped(&format!("here it is not true that {what}")))
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

    /// Shows a command line and runs it; it is to succeed.
    fn fief(&self, arguments: &[&str]) -> Result<Ended> {
        let ended = self.run(arguments)?;
        if ended.code == Some(0) {
            return Ok(ended);
        }
        Err(stopped(&format!("`{}` failed", line(arguments))))
    }

    /// Shows a command line, runs it and shows what it says.
    fn run(&self, arguments: &[&str]) -> Result<Ended> {
        output(&format!("$ {}\n", line(arguments)))?;
        let begun = Instant::now();
        let said = self.command(arguments).stderr(Stdio::inherit()).output()?;
        let took = begun.elapsed();
        let out = String::from_utf8_lossy(&said.stdout);
        output(&format!("{out}  ({:.1} s)\n", took.as_secs_f64()))?;
        Ok(Ended {
            code: said.status.code(),
            out: out.trim_end().to_owned(),
            took,
        })
    }

    /// Whether a command succeeds that is not worth showing.
    fn quietly(&self, arguments: &[&str]) -> bool {
        let status = self
            .command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    }

    /// What a command says that is not worth showing.
    fn told(&self, arguments: &[&str]) -> Result<String> {
        let said = self.command(arguments).stderr(Stdio::null()).output()?;
        Ok(String::from_utf8_lossy(&said.stdout).trim_end().to_owned())
    }

    fn inspect(&self, name: &str) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.told(&["inspect", name])?)?)
    }

    fn boot_of_host(&self) -> Result<String> {
        if self.host == "native" {
            return Ok(std::fs::read_to_string(BOOT_ID)?.trim_end().to_owned());
        }
        self.told(&["host", "exec", "--", "cat", BOOT_ID])
    }

    fn address(&self, name: &str) -> Result<String> {
        let told = self.inspect(name)?;
        let address = told["network"]["address"].as_str();
        address.map_or_else(
            || Err(stopped(&format!("{name} has no network"))),
            |address| Ok(address.to_owned()),
        )
    }

    /// What the tenant takes of the host's memory now.
    fn memory(&self, name: &str) -> Result<Bytes> {
        let told = self.told(&["stats", "--no-stream", "--json", name])?;
        let told: serde_json::Value = serde_json::from_str(&told)?;
        let bytes = told["memory_bytes"].as_u64();
        bytes.map_or_else(
            || Err(stopped(&format!("nobody knows the memory of {name}"))),
            |bytes| Ok(Bytes(bytes)),
        )
    }

    fn end_of(&self, name: &str) -> Result<Reason> {
        let told = self.inspect(name)?;
        Ok(serde_json::from_value(told["exit"]["reason"].clone())?)
    }

    /// Waits until the crash is known.
    fn await_crash(&self, name: &str) -> Result<()> {
        for _ in 0..LOOKS {
            if self.inspect(name)?["exit"]["reason"] == "panic" {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(stopped("the crash was not reported"))
    }
}

fn stopped(why: &str) -> Error {
    Error::new(format!(
        "the demo stopped: {why}; `fief doctor`, `fief ps -a` and `fief logs` may tell more"
    ))
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
