//! The `fief` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A shim is small: it has no use for the command line.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == fief::shim::WORD)
    {
        return fief::shim::main();
    }
    fief::cli::main()
}
