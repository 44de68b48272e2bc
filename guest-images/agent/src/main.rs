//! The program inside a tenant: it sets the system up as PID 1 of the initramfs, then runs commands for `fief`.
//!
//! It has one thread. Started as PID 1 it reads its settings from the kernel command line; with `--listen-unix PATH` it
//! serves as an ordinary program. See `docs/agent-protocol.md`.

#![cfg_attr(not(test), no_main)]

mod account;
mod boot;
mod container;
mod copy;
mod drive;
mod grow;
mod log;
mod provide;
mod serve;
mod settings;
mod shutdown;
mod spawn;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fief_agent_proto::{AgentHello, InitMode, ShutdownAction, VERSION};

use boot::Root;
use serve::{Listener, Server};
use settings::{Settings, Transport};

/// The C entry point rather than Rust's: before `main`, Rust's runtime opens `/dev/null` for missing descriptors and
/// aborts if it cannot, and PID 1 of an initramfs may have neither a console nor a `/dev`.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code))]
pub extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    let words: Vec<_> = std::env::args_os().collect();
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    match words[..] {
        [_, b"--container", ref settings @ ..] if std::process::id() == 1 => {
            start_container(&String::from_utf8_lossy(&settings.join(&b' ')))
        }
        // A container that only asks for the version has it as its first process.
        _ if std::process::id() == 1 && words[1..] != [b"--version"] => start_system(),
        [boot::BESIDE_NAME] => {
            serve_beside(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
        }
        [boot::BESIDE_NAME, settings] => {
            container::enter();
            serve_beside(&String::from_utf8_lossy(settings))
        }
        [_, b"--listen-unix", socket] => serve_program(path(socket), None),
        [_, b"--listen-unix", socket, b"--root", root] => {
            serve_program(path(socket), Some(path(root)))
        }
        [_, b"--grow", id] => ended(grow::running(&String::from_utf8_lossy(id))),
        [_, b"--drive", id] => ended(drive::report(&String::from_utf8_lossy(id))),
        [_, b"--pack", path] => ended(copy::pack(path)),
        [_, b"--unpack", what, owners, path, base] => ended(copy::unpack(what, owners, path, base)),
        [_, b"--version"] => {
            println!("fief-agent {}", env!("CARGO_PKG_VERSION"));
            0
        }
        _ => {
            eprintln!(
                "usage: fief-agent --listen-unix PATH [--root DIR]   (or PID 1 of an initramfs)"
            );
            2
        }
    }
}

fn path(word: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(word))
}

/// The exit code of a program whose failure is told on stderr.
fn ended(result: Result<(), String>) -> libc::c_int {
    match result {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("{why}");
            1
        }
    }
}

fn hello(init: InitMode, problem: Option<String>) -> AgentHello {
    AgentHello {
        version: VERSION,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        init,
        problem,
    }
}

/// PID 1: sets up the tenant's root, then serves or becomes the image's init. Never returns.
fn start_system() -> ! {
    boot::mount_kernel_file_systems();
    log::to_kernel_log();
    let settings = Settings::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
    tell_bad(&settings, "on the kernel command line");
    boot::load_modules(&settings.modules);
    let mut later = boot::later_modules();
    if settings.network.is_some() {
        // A command may use the network from its first moment.
        boot::insert_modules(boot::take_network_driver(&mut later));
    }
    let (root, mut problem) = match Root::set_up(&settings) {
        Ok(root) => (root, None),
        Err(error) => {
            log::error(format!("{error}; serving from the initramfs"));
            (Root::default(), Some(error))
        }
    };
    boot::prepare(&settings);
    if settings.init == InitMode::Image && problem.is_none() {
        // An init that looks for devices finds all of them.
        boot::insert_modules(later.drain(..));
        // Returns only if there is none.
        let error = boot::become_image_init(None);
        log::error(&error);
        problem = Some(error);
    }
    boot::prepare_without_init();
    boot::make_device_nodes();
    let action = serve(&settings, hello(InitMode::Agent, problem), later);
    shutdown::end_system(&root, action)
}

/// PID 1 of a container, whose root is there already. Never returns.
fn start_container(words: &str) -> ! {
    container::enter();
    let line = format!("{words} fief.agent=inherited");
    let settings = Settings::parse(&line);
    tell_bad(&settings, "among its arguments");
    boot::prepare(&settings);
    let mut problem = None;
    if settings.init == InitMode::Image {
        // Returns only if there is none.
        let error = boot::become_image_init(Some(&line));
        log::error(&error);
        problem = Some(error);
    }
    boot::prepare_without_init();
    let action = serve(&settings, hello(InitMode::Agent, problem), Vec::new());
    shutdown::end_system(&Root::default(), action)
}

fn tell_bad(settings: &Settings, place: &str) {
    for word in &settings.bad {
        log::error(format!(
            "'{word}' {place} makes no sense to this agent; it is ignored"
        ));
    }
}

/// Serves as PID 1 until someone asks for an end.
fn serve(
    settings: &Settings,
    hello: AgentHello,
    later: Vec<boot::Module>,
) -> fief_agent_proto::Shutdown {
    let powered_off = fief_agent_proto::Shutdown {
        action: ShutdownAction::Poweroff,
        force: false,
    };
    let mut server = match Server::new(hello, settings.user.clone()) {
        Ok(server) => server,
        Err(error) => {
            log::error(format!("cannot start to serve: {error}; powering off"));
            return powered_off;
        }
    };
    connect(&mut server, &settings.transport);
    boot::insert_modules_beside(later);
    server.run().unwrap_or_else(|error| {
        log::error(format!("cannot go on serving: {error}; powering off"));
        powered_off
    })
}

/// Opens the way to the clients. Without one the system still runs, for its console and power button.
fn connect(server: &mut Server, transport: &Transport) {
    match transport {
        Transport::Vsock => match Listener::vsock() {
            Ok(listener) => server.listen(listener),
            Err(error) => log::error(format!(
                "cannot listen on vsock: {error}; the machine needs a vsock device and the initramfs its modules"
            )),
        },
        Transport::Inherited => match Listener::inherited() {
            Ok(listener) => server.listen(listener),
            Err(error) => log::error(format!(
                "descriptor {} is no listening socket: {error}; a container is started by fief itself",
                container::LISTENER
            )),
        },
        Transport::Serial(name) => match boot::wait_for(|| serve::open_serial(name).ok()) {
            Some(port) => server.serve_serial(port),
            None => log::error(format!(
                "there is no serial port '{name}'; the machine needs one and the initramfs the virtio_console module"
            )),
        },
    }
}

/// Beside the image's init.
fn serve_beside(line: &str) -> libc::c_int {
    if !container::is_here() {
        log::to_kernel_log();
    }
    // It was started through /proc/self/exe, so its name would be `exe`.
    let _ = nix::sys::prctl::set_name(c"fief-agent");
    let settings = Settings::parse(line);
    let mut server = match Server::new(hello(InitMode::Image, None), settings.user.clone()) {
        Ok(server) => server,
        Err(error) => {
            log::error(format!("cannot start to serve: {error}"));
            return 1;
        }
    };
    connect(&mut server, &settings.transport);
    loop {
        match server.run() {
            Ok(request) if request.force => shutdown::end_at_once(request.action),
            Ok(request) => Server::ask_init(request.action),
            Err(error) => {
                log::error(format!("cannot go on serving: {error}"));
                return 1;
            }
        }
    }
}

/// As an ordinary program. `root` stands for a tenant's root when a client gives it names and an account.
fn serve_program(path: &Path, root: Option<&Path>) -> libc::c_int {
    let served = Listener::unix(path).and_then(|listener| {
        let mut server = Server::new(hello(InitMode::Program, None), None)?;
        server.listen(listener);
        root.into_iter()
            .for_each(|root| server.provide_below(root.to_owned()));
        let result = server.run();
        server.end_commands();
        result
    });
    let _ = std::fs::remove_file(path);
    match served {
        Ok(_) => 0,
        Err(error) => {
            log::error(format!("cannot serve on {}: {error}", path.display()));
            1
        }
    }
}
