//! `fief-vmm`: one process, one virtual machine.

use std::io::Write;
use std::process::ExitCode;

use fief_vmm::cli;

fn main() -> ExitCode {
    // SAFETY: mallopt only sets a parameter of the allocator, and nothing else runs yet. One arena: the threads of a
    // monitor allocate little, and each further arena costs resident pages.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let code = match cli::parse(std::env::args_os()) {
        Ok(args) => cli::run(&args),
        Err(instead) => {
            let text = instead.text.as_bytes();
            // Nobody is left to tell when this fails.
            let _ = match instead.code {
                cli::exit_code::OK => std::io::stdout().write_all(text),
                _ => std::io::stderr().write_all(text),
            };
            instead.code
        }
    };
    ExitCode::from(code)
}
