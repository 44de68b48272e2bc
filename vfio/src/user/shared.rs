//! Memory that both have: of the device process, mapped into the guest, and of the guest, mapped by the process.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Why memory of a device process is not mapped.
#[derive(Debug, thiserror::Error)]
pub enum NotShared {
    #[error("it sent no descriptor; accesses there go through it")]
    Nothing,
    #[error(
        "its descriptor is no memfd, nor a file of tmpfs or hugetlbfs ({0}); accesses there go through it"
    )]
    NotMemory(#[source] io::Error),
}

/// Takes a descriptor that parts of a region can be mapped by: only one of memory. A page of another file could be one that
/// a slow or hostile file system never brings, and the vCPU that touches it could not be stopped.
///
/// It is sealed against shrinking, if it can be. Where it cannot (it is not a memfd, or sealing it is not allowed) and the process
/// shrinks it, a vCPU that touches what is missing tries for ever: KVM lets the page be fetched in the background, and looks again.
/// A signal gets it out, so the machine can be paused and ended. It is this machine alone, and the process could do no less by the
/// guest's memory, which it has.
///
/// # Errors
/// It is of another kind.
pub fn accept(descriptor: OwnedFd) -> Result<File, NotShared> {
    let file = File::from(descriptor);
    let seals = seals(&file).map_err(NotShared::NotMemory)?;
    if seals & libc::F_SEAL_SHRINK == 0
        && let Err(error) = seal(&file, libc::F_SEAL_SHRINK)
    {
        tracing::debug!("memory of the device process cannot be sealed: {error}");
    }
    Ok(file)
}

/// Makes sure that a process which gets `file`, the guest's memory, can do nothing to it but read and write: if it could shrink
/// it, it could end this process by what this one reads.
///
/// # Errors
/// It cannot be sealed: it is no memfd that allows it.
pub fn secure(file: &File) -> io::Result<()> {
    let wanted = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    if seals(file)? & wanted == wanted {
        return Ok(());
    }
    seal(file, wanted)
}

fn seals(file: &File) -> io::Result<libc::c_int> {
    // SAFETY: asks about a descriptor that is open.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(seals)
}

fn seal(file: &File, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: adds seals to a descriptor that is open.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether there is memory up to `end` in it, bytes.
///
/// # Errors
/// There is not, or the kernel does not tell.
pub fn reaches(file: &File, end: u64) -> io::Result<()> {
    if file.metadata()?.len() < end {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the device process's memory is smaller than its region",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;

    use super::*;

    fn memfd(flags: libc::c_uint) -> File {
        // SAFETY: a name and flags; the descriptor is new.
        let raw = unsafe { libc::memfd_create(c"test".as_ptr(), flags) };
        assert!(raw >= 0);
        // SAFETY: as above.
        unsafe { File::from_raw_fd(raw) }
    }

    #[test]
    fn memory_that_may_be_sealed_cannot_shrink_afterwards() {
        let theirs = memfd(libc::MFD_ALLOW_SEALING);
        theirs.set_len(0x2000).unwrap();
        let ours = accept(theirs.try_clone().unwrap().into()).unwrap();
        theirs.set_len(0x1000).unwrap_err();
        theirs.set_len(0x3000).unwrap();
        reaches(&ours, 0x3000).unwrap();
        reaches(&ours, 0x3001).unwrap_err();
    }

    #[test]
    fn memory_of_the_guest_keeps_its_size_and_its_seals() {
        let ours = memfd(libc::MFD_ALLOW_SEALING);
        ours.set_len(0x2000).unwrap();
        secure(&ours).unwrap();
        // A second device process gets it, too.
        secure(&ours).unwrap();
        let theirs = ours.try_clone().unwrap();
        theirs.set_len(0x1000).unwrap_err();
        theirs.set_len(0x3000).unwrap_err();
        seal(&theirs, libc::F_SEAL_FUTURE_WRITE).unwrap_err();
        secure(&memfd(0)).unwrap_err();
    }

    #[test]
    fn memory_that_may_not_be_sealed_is_taken_and_other_files_are_not() {
        accept(memfd(0).into()).unwrap();
        let (end, _) = io::pipe().unwrap();
        let refused = accept(end.into()).unwrap_err();
        assert!(matches!(refused, NotShared::NotMemory(_)), "{refused}");
    }
}
