//! The program inside a tenant: it sets the system up as PID 1 of the initramfs, then runs commands for `fief`.
//!
//! It has one thread. Started as PID 1 it reads its settings from the kernel command line, in a container (`--container
//! WORD...`) from its arguments; with `--listen-unix PATH` it serves as an ordinary program. See `docs/agent-protocol.md`.

#![cfg_attr(not(test), no_main)]

mod account;
mod boot;
mod copy;
mod drive;
mod grow;
mod log;
mod moving;
mod provide;
mod serve;
mod settings;
mod shutdown;
mod spawn;
mod text;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fief_agent_proto::{AgentHello, InitMode, ShutdownAction, VERSION};

use boot::Root;
use serve::{Listener, Server};
use settings::{Place, Settings, Transport};

/// The C entry point rather than Rust's: before `main`, Rust's runtime opens `/dev/null` for missing descriptors and
/// aborts if it cannot, and PID 1 of an initramfs may have neither a console nor a `/dev`.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code))]
pub extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    let words: Vec<_> = std::env::args_os().collect();
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    // A container that only asks for the version has it as its first process.
    if std::process::id() == 1 && !matches!(words[..], [_, b"--version"]) {
        start_system(&words);
    }
    match words[..] {
        [boot::BESIDE_NAME, ..] => serve_beside(&words),
        [_, b"--listen-unix", socket] => serve_program(path(socket), None),
        [_, b"--listen-unix", socket, b"--root", root] => {
            serve_program(path(socket), Some(path(root)))
        }
        [_, b"--grow", id] => ended(grow::running(&String::from_utf8_lossy(id))),
        [_, b"--drive", id] => ended(drive::report(&String::from_utf8_lossy(id))),
        [_, b"--pack", path] => ended(copy::pack(path)),
        [_, b"--unpack", what, owners, path, base] => ended(copy::unpack(what, owners, path, base)),
        [_, b"--diff"] => ended(moving::diff()),
        [_, b"--apply"] => ended(moving::apply()),
        [_, b"--version"] => {
            println!("fief-agent {}", env!("CARGO_PKG_VERSION"));
            0
        }
        _ => {
            eprintln!(
                "usage: fief-agent --listen-unix PATH [--root DIR]   (or PID 1: of an initramfs; of a container, with --container WORD...)"
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

/// The words that a container's agent is given; none in a machine.
fn container_words<'a>(words: &'a [&'a [u8]]) -> Option<&'a [&'a [u8]]> {
    match words {
        [_, boot::CONTAINER, words @ ..] => Some(words),
        _ => None,
    }
}

/// What this start is to be, and the way to the clients if the agent was given one. Messages go where people look.
fn begin(words: &[&[u8]]) -> (Settings, Option<Listener>) {
    let Some(words) = container_words(words) else {
        log::to_kernel_log();
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        return (Settings::parse(&line, Place::Machine), None);
    };
    match Listener::inherited() {
        // What /proc/cmdline says there is for the host.
        Ok(listener) => (
            Settings::parse(
                &String::from_utf8_lossy(&words.join(&b' ')),
                Place::Container,
            ),
            Some(listener),
        ),
        Err(error) => {
            log::error(format!(
                "descriptor 3 is no listening unix socket: {error}; a container's runtime passes it with --preserve-fds 2"
            ));
            std::process::exit(1)
        }
    }
}

/// PID 1: sets up the tenant's root, then serves or becomes the image's init. Never returns.
fn start_system(words: &[&[u8]]) -> ! {
    match container_words(words) {
        Some(_) => {
            if let Err(error) = boot::belong_to_container() {
                log::error(error);
                std::process::exit(1);
            }
        }
        None => boot::mount_kernel_file_systems(),
    }
    let (settings, listener) = begin(words);
    for word in &settings.bad {
        log::error(format!(
            "the setting '{word}' makes no sense to this agent here; it is ignored"
        ));
    }
    let mut later = Vec::new();
    if settings.place == Place::Machine {
        boot::load_modules(&settings.modules);
        later = boot::later_modules();
        if settings.network.is_some() {
            // A command may use the network from its first moment.
            boot::insert_modules(boot::take_network_driver(&mut later));
        }
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
        let error = boot::become_image_init(container_words(words));
        log::error(&error);
        problem = Some(error);
    }
    boot::prepare_without_init();
    if settings.place == Place::Machine {
        boot::make_device_nodes();
    }
    let hello = hello(InitMode::Agent, problem);
    let request = serve(&settings, listener, hello, later);
    shutdown::end_system(&root, settings.place, request)
}

/// Serves as PID 1 until someone asks for an end.
fn serve(
    settings: &Settings,
    listener: Option<Listener>,
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
    connect(&mut server, listener, &settings.transport);
    boot::insert_modules_beside(later);
    server.run().unwrap_or_else(|error| {
        log::error(format!("cannot go on serving: {error}; powering off"));
        powered_off
    })
}

/// Opens the way to the clients. Without one the system still runs, for its console and power button.
fn connect(server: &mut Server, given: Option<Listener>, transport: &Transport) {
    if let Some(listener) = given {
        return server.listen(listener);
    }
    match transport {
        Transport::Vsock => match Listener::vsock() {
            Ok(listener) => server.listen(listener),
            Err(error) => log::error(format!(
                "cannot listen on vsock: {error}; the machine needs a vsock device and the initramfs its modules"
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
fn serve_beside(words: &[&[u8]]) -> libc::c_int {
    let (settings, listener) = begin(words);
    // It was started through /proc/self/exe, so its name would be `exe`.
    let _ = nix::sys::prctl::set_name(c"fief-agent");
    let mut server = match Server::new(hello(InitMode::Image, None), settings.user.clone()) {
        Ok(server) => server,
        Err(error) => {
            log::error(format!("cannot start to serve: {error}"));
            return 1;
        }
    };
    connect(&mut server, listener, &settings.transport);
    loop {
        match server.run() {
            Ok(request) if request.force => shutdown::end_at_once(settings.place, request.action),
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
