//! `fief-vmm`: one process, one virtual machine.

#![cfg_attr(not(test), no_main)]

use std::io::Write;

use fief_vmm::cli;

/// The C entry point rather than Rust's, whose runtime reads `/proc/self/maps` to find the stack's guard page and gives
/// every thread a second stack to report an overflow on: time at each start, and memory.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code))]
pub extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    prepare();
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
    code.into()
}

/// What the Rust runtime would have done, and the allocator's set-up.
fn prepare() {
    // SAFETY: plain calls before anything else runs; no memory of ours is involved.
    unsafe {
        // Files opened later must not land on descriptors that mean "output": a guest's disk is no place for messages.
        for standard in 0..3 {
            if libc::fcntl(standard, libc::F_GETFD) == -1
                && libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) != standard
            {
                libc::abort();
            }
        }
        // A reader that goes away is an error of the write, not the end of the machine.
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        // One arena: the threads of a monitor allocate little, and each further arena costs resident pages.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
