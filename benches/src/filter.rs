//! Which system calls the kernel lets a task make: its seccomp filters, read from the kernel and followed to their ends.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::error::{Error, Result, failed, on};

/// Numbers of system calls are below (`syscall_64.tbl`: x32's begin there).
const CALLS: u32 = 512;
/// Instructions of a filter, at most (`BPF_MAXINSNS`).
const LONGEST: usize = 4096;
/// x86-64 (`linux/audit.h`).
const ARCHITECTURE: u32 = 0xc000_003e;
/// Asks for a filter (`linux/ptrace.h`).
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
/// Where `struct seccomp_data` has the call's number and the architecture; the rest are the caller's addresses and arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

/// How many system calls these tasks can make together, whatever they pass to them; none: they have no filter, and can make all
/// that the kernel has.
///
/// # Errors
/// The kernel does not show a filter, or one has instructions that seccomp knows not.
pub fn allowed(tasks: &[i32]) -> Result<Option<usize>> {
    let mut all = BTreeSet::new();
    for task in tasks {
        let filters = filters(*task)?;
        if filters.is_empty() {
            return Ok(None);
        }
        let calls = (0..CALLS).map(|call| (call, permit(&filters, call)));
        for (call, permitted) in calls {
            let senseless =
                || Error::Other(format!("a seccomp filter of process {task} makes no sense"));
            if permitted.ok_or_else(senseless)? {
                all.insert(call);
            }
        }
    }
    Ok(Some(all.len()))
}

type Program = Vec<libc::sock_filter>;

/// The filters of a task. It stops for a moment.
fn filters(task: i32) -> Result<Vec<Program>> {
    let path = format!("/proc/{task}/status");
    let path = std::path::Path::new(&path);
    let text = fs::read_to_string(path).map_err(on("read", path))?;
    let mode = text.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    // 2: filters (proc_pid_status(5)). A kernel without seccomp tells nothing.
    if mode.is_none_or(|mode| mode.trim() != "2") {
        return Ok(Vec::new());
    }
    let cannot = |errno: nix::Error| {
        let what = format!("read the seccomp filters of process {task} (ptrace(2))");
        failed(what)(errno.into())
    };
    let pid = Pid::from_raw(task);
    ptrace::seize(pid, ptrace::Options::empty()).map_err(cannot)?;
    let read = ptrace::interrupt(pid)
        .and_then(|()| waitpid(pid, Some(WaitPidFlag::__WALL)))
        .and_then(|_| {
            let each = (0..).map(|index| program(task, index));
            // After the last one there is none.
            let each = each.take_while(|one| !matches!(one, Err(nix::Error::ENOENT)));
            each.collect()
        });
    let _ = ptrace::detach(pid, None);
    read.map_err(cannot)
}

/// PTRACE_SECCOMP_GET_FILTER, of a task that is stopped.
fn program(task: i32, index: usize) -> nix::Result<Program> {
    let none = libc::sock_filter {
        code: 0,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let mut program = vec![none; LONGEST];
    // SAFETY: the kernel writes at most BPF_MAXINSNS instructions, for which there is room.
    let length =
        unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, task, index, program.as_mut_ptr()) };
    let length = usize::try_from(length).map_err(|_| nix::Error::last())?;
    program.truncate(length);
    Ok(program)
}

/// Whether there are arguments with which all of a task's filters let a call pass.
fn permit(filters: &[Program], call: u32) -> Option<bool> {
    let mut each = filters.iter().map(|filter| may_pass(filter, call));
    each.try_fold(true, |all, one| Some(all && one?))
}

/// Follows all ways through a filter that a call could take. What is not known of an accumulator is `None`; a jump leads only
/// forwards, so each instruction is looked at once for each value that it is reached with.
fn may_pass(program: &[libc::sock_filter], call: u32) -> Option<bool> {
    let mut reached = BTreeSet::from([(0, Some(0u32))]);
    while let Some((at, value)) = reached.pop_first() {
        let one = program.get(at)?;
        let next = at + 1;
        let code = u32::from(one.code);
        if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
            let loaded = match one.k {
                NUMBER => Some(call),
                ARCHITECTURE_AT => Some(ARCHITECTURE),
                _ => None,
            };
            reached.insert((next, loaded));
            continue;
        }
        let (yes, no) = (next + usize::from(one.jt), next + usize::from(one.jf));
        let mut branch = |met: fn(u32, u32) -> bool| match value {
            Some(value) => {
                reached.insert((if met(value, one.k) { yes } else { no }, Some(value)));
            }
            None => reached.extend([(yes, None), (no, None)]),
        };
        // Of classic BPF (linux/filter.h), what seccomp allows and libseccomp, crun's, and other monitors' filters use.
        match (code & 7, code & 0xf8) {
            (libc::BPF_JMP, libc::BPF_JEQ) => branch(|value, k| value == k),
            (libc::BPF_JMP, libc::BPF_JGT) => branch(|value, k| value > k),
            (libc::BPF_JMP, libc::BPF_JGE) => branch(|value, k| value >= k),
            (libc::BPF_JMP, libc::BPF_JSET) => branch(|value, k| value & k != 0),
            (libc::BPF_JMP, libc::BPF_JA) => {
                reached.insert((next + usize::try_from(one.k).ok()?, value));
            }
            (libc::BPF_ALU, libc::BPF_AND) => {
                reached.insert((next, value.map(|value| value & one.k)));
            }
            (libc::BPF_RET, 0) => {
                if lets_pass(one.k) {
                    return Some(true);
                }
            }
            _ => return None,
        }
    }
    Some(false)
}

/// Whether a call with this answer of a filter is made: allowed, or allowed and logged.
fn lets_pass(answer: u32) -> bool {
    let action = answer & libc::SECCOMP_RET_ACTION_FULL;
    action == libc::SECCOMP_RET_ALLOW || action == libc::SECCOMP_RET_LOG
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
        let code = u16::try_from(code).unwrap();
        libc::sock_filter { code, jt, jf, k }
    }

    fn load(from: u32) -> libc::sock_filter {
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, from, 0, 0)
    }

    fn equal(k: u32, jt: u8, jf: u8) -> libc::sock_filter {
        step(libc::BPF_JMP | libc::BPF_JEQ, k, jt, jf)
    }

    fn answer(k: u32) -> libc::sock_filter {
        step(libc::BPF_RET, k, 0, 0)
    }

    /// 1 passes, 2 only with some argument, all else does not; of another architecture, nothing does.
    fn program() -> Program {
        vec![
            load(ARCHITECTURE_AT),
            equal(ARCHITECTURE, 0, 6),
            load(NUMBER),
            equal(1, 3, 0),
            equal(2, 0, 3),
            load(16),
            step(libc::BPF_JMP | libc::BPF_JGE, 40, 1, 0),
            answer(libc::SECCOMP_RET_ALLOW),
            answer(libc::SECCOMP_RET_ERRNO | 38),
        ]
    }

    #[test]
    fn a_call_passes_if_some_arguments_let_it_pass_all_filters() {
        let calls = |filters: &[Program]| -> Vec<u32> {
            let all = 0..CALLS;
            all.filter(|call| permit(filters, *call).unwrap()).collect()
        };
        assert_eq!(calls(&[program()]), [1, 2]);
        let only_two = vec![
            load(NUMBER),
            equal(2, 0, 1),
            answer(libc::SECCOMP_RET_LOG),
            answer(libc::SECCOMP_RET_KILL_PROCESS),
        ];
        assert_eq!(calls(std::slice::from_ref(&only_two)), [2]);
        assert_eq!(calls(&[program(), only_two]), [2]);
        assert_eq!(calls(&[]).len(), CALLS as usize);
    }

    #[test]
    fn what_is_no_filter_is_told() {
        assert_eq!(permit(&[Vec::new()], 1), None);
        assert_eq!(permit(&[vec![load(NUMBER)]], 1), None);
        assert_eq!(permit(&[vec![step(0xffff, 0, 0, 0)]], 1), None);
    }
}
