//! What a monitor takes of its host's memory.

/// KiB of the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// The monitor itself, each page that is shared with others counted in its part (PSS).
    pub own: u64,
    /// Guest RAM that is there (PSS; nobody shares it).
    pub guest: u64,
}

impl Resident {
    /// Reads `/proc/PID/smaps` of a monitor whose guest has `guest_mib` MiB in one piece.
    ///
    /// # Panics
    /// It is not the kernel's format, or there is no guest RAM in it.
    pub fn read(smaps: &str, guest_mib: u64) -> Self {
        let mut resident = Self { own: 0, guest: 0 };
        let (mut in_guest, mut found) = (false, false);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let mut kib = || words.nth(1).and_then(|word| word.parse::<u64>().ok());
            if line.starts_with("Size:") {
                // Kernels without names for anonymous memory leave the size to tell it by.
                in_guest |= kib() == Some(guest_mib << 10);
                found |= in_guest;
            } else if line.starts_with("Pss:") {
                let kib = kib().unwrap_or_else(|| panic!("{line}"));
                *(if in_guest {
                    &mut resident.guest
                } else {
                    &mut resident.own
                }) += kib;
            } else if !line.split(' ').next().unwrap_or("").ends_with(':') {
                // The head of a mapping.
                in_guest = line.contains("guest RAM");
            }
        }
        assert!(found, "guest RAM was not found in {smaps}");
        resident
    }
}
