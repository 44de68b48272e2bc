//! Where everything is in the guest-physical address space.
//!
//! ```text
//! 0x0000_0000  RAM: boot data below 0xA_0000, ACPI and MP tables at 0xE_0000, the reset vector below 1 MiB, the kernel
//!              from there up, the initrd below the end
//! 0xC000_0000  32-bit PCI windows of bus 0 and of bus 1, where functions are added to a running machine
//! 0xEC00_0000  PCI ECAM, buses 0 and 1
//! 0xFEC0_0000  I/O APIC, local APICs at 0xFEE0_0000, KVM's TSS and identity map
//! 0x1_0000_0000  the rest of the RAM
//!              64-bit PCI window, see [`PciWindow64`]
//! ```

use std::ops::Range;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Start of the memory that a guest is told of. Page 0 is there too, for what kernels look for in it, but is not theirs.
pub const LOW_RAM_START: u64 = 0x1000;
/// End of conventional memory: what follows was video memory and firmware on a PC.
pub const LOW_RAM_END: u64 = 0xA_0000;
/// Start of extended memory (1 MiB).
pub const HIGH_RAM_START: u64 = MIB;

/// Global descriptor table of the boot CPU.
pub const GDT_START: u64 = 0x500;
/// Linux's zero page, or PVH's start info (Documentation/arch/x86/boot.rst, pvh.rst).
pub const BOOT_PARAMS_START: u64 = 0x1000;
/// Memory map and module list of the PVH start info.
pub const PVH_TABLES_START: u64 = 0x2000;
/// Stack of the boot CPU, growing down.
pub const BOOT_STACK: u64 = 0x7FF0;
/// Identity map of the first 4 GiB: one PML4, one page of 1 GiB entries' pointers, four of 2 MiB entries.
pub const PAGE_TABLES_START: u64 = 0x8000;
/// Kernel command line.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Room for the command line with its terminating zero; x86 Linux reads at most COMMAND_LINE_SIZE = 2048 bytes.
pub const CMDLINE_MAX: usize = 2048;
/// ACPI tables, the RSDP first: where a PC has its firmware, which the memory map leaves out and where kernels that are
/// not told look for the RSDP (ACPI 6.5 §5.2.5.1). There is RAM behind it here.
pub const ACPI_START: u64 = 0xE_0000;
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = MP_TABLE_START;
/// MultiProcessor table, behind the ACPI tables.
pub const MP_TABLE_START: u64 = 0xF_0000;

/// Where a real-mode jump to the BIOS's entry F000:FFF0 ends up (Intel SDM 3A §10.1.4 has it at the top of 4 GiB, of which
/// this is a PC's alias).
pub const RESET_VECTOR: u64 = 0xF_FFF0;

/// End of the RAM below 4 GiB; the device hole follows.
pub const RAM_HOLE_START: u64 = 3 * GIB;
/// Where RAM goes on above the hole.
pub const RAM_HOLE_END: u64 = 4 * GIB;

/// 32-bit PCI memory window of bus 0.
pub const PCI_WINDOW_32: Range<u64> = 0xC000_0000..0xE000_0000;
/// 32-bit PCI memory window of bus 1: half a MiB for each of its slots, and several GPUs of 16 MiB beside them.
pub const HOT_PLUG_WINDOW: Range<u64> = 0xE000_0000..0xEC00_0000;
/// Memory-mapped configuration space (PCI Express 5.0 §7.2.2), 1 MiB a bus.
pub const ECAM_START: u64 = 0xEC00_0000;
/// Size of the configuration space of buses 0 and 1.
pub const ECAM_SIZE: u64 = 2 * MIB;
/// I/O ports that functions on bus 0 can have.
pub const PCI_IO_WINDOW: Range<u16> = 0x1000..0x9000;
/// I/O ports that functions on bus 1 can have.
pub const HOT_PLUG_IO_WINDOW: Range<u16> = 0x9000..0xF000;
/// First of the wired interrupts of PCI slots: slot n has this plus n modulo [`PCI_GSI_COUNT`], on both buses.
pub const PCI_GSI_START: u32 = 16;
/// Number of wired interrupts that PCI slots share: the rest of the I/O APIC's inputs.
pub const PCI_GSI_COUNT: u32 = 8;

/// The wired interrupt of a slot.
pub fn slot_gsi(slot: u8) -> u32 {
    PCI_GSI_START + u32::from(slot) % PCI_GSI_COUNT
}

/// I/O APIC (Intel 82093AA §3.0).
pub const IO_APIC_START: u32 = 0xFEC0_0000;
/// Local APICs (Intel SDM 3A §11.4.1).
pub const LOCAL_APIC_START: u32 = 0xFEE0_0000;
/// One page for the identity map that KVM needs on Intel CPUs without unrestricted guest.
pub const IDENTITY_MAP_START: u64 = 0xFFFB_C000;
/// Three pages for the task state segment that KVM needs there.
pub const TSS_START: u64 = 0xFFFB_D000;

/// Pieces of guest RAM for `size` bytes: start and length, in order.
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(RAM_HOLE_START);
    let mut ranges = vec![(0, low)];
    if let Some(high) = size.checked_sub(low).filter(|rest| *rest > 0) {
        ranges.push((RAM_HOLE_END, high));
    }
    ranges
}

/// End of the guest RAM that lies below 4 GiB.
pub fn low_ram_end(size: u64) -> u64 {
    size.min(RAM_HOLE_START)
}

/// 64-bit PCI memory window, meant to take several GPU BARs of 128 GiB where the CPU's addresses reach that far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciWindow64 {
    pub start: u64,
    /// Exclusive.
    pub end: u64,
}

/// First byte of the range that AMD CPUs keep for HyperTransport and their IOMMU refuses to map (AMD64 APM 2 §7.9).
const HYPERTRANSPORT_START: u64 = 0xFD_0000_0000;
/// End of that range.
const HYPERTRANSPORT_END: u64 = 0x100_0000_0000;

/// Places the window for `ram` bytes of RAM and a guest MAXPHYADDR of `bits`. `None` if the RAM leaves no room.
///
/// It starts at a quarter of the address space, at most at 256 GiB, and stays below 1 TiB while RAM and `bars`, the size of
/// what is to be placed on bus 0, allow: IOMMUs that translate fewer bits than the CPU has can then still map it, and AMD's
/// reserved range is left out.
pub fn pci_window_64(ram: u64, bars: u64, bits: u8) -> Option<PciWindow64> {
    let ram_end = ram_ranges(ram)
        .last()
        .map_or(0, |(start, length)| start.saturating_add(*length));
    let top = 1_u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX);
    let unit = (top / 4).clamp(GIB, 256 * GIB);
    let below = round_up(ram_end, unit)?.max(unit);
    let low = PciWindow64 {
        start: below,
        end: top.min(HYPERTRANSPORT_START),
    };
    // Rounded up for the gaps that alignment leaves.
    let bars = bars.checked_next_power_of_two()?;
    let start = below.max(HYPERTRANSPORT_END);
    let size = bars.saturating_mul(2).max(1024 * GIB);
    let high = PciWindow64 {
        start,
        end: top.min(start.saturating_add(size)),
    };
    let is_there = |window: &PciWindow64| window.start < window.end;
    let takes = |window: &PciWindow64| {
        let half = window.halves().0;
        is_there(window) && half.end.saturating_sub(half.start) >= bars
    };
    // Neither large enough: placing the BARs tells which did not fit.
    [low, high]
        .into_iter()
        .find(takes)
        .or(Some(low).filter(is_there))
        .or(Some(high).filter(is_there))
}

impl PciWindow64 {
    /// What of it is for bus 0, and what for bus 1.
    pub fn halves(self) -> (Self, Self) {
        let half = self.end.saturating_sub(self.start) / 2 / GIB * GIB;
        let middle = self.start.saturating_add(half);
        let (start, end) = (self.start, self.end);
        (Self { start, end: middle }, Self { start: middle, end })
    }
}

/// Rounds up to a power of two; `None` on overflow.
pub fn round_up(value: u64, align: u64) -> Option<u64> {
    debug_assert!(align.is_power_of_two());
    Some(value.checked_add(align.checked_sub(1)?)? & !align.checked_sub(1)?)
}

const _: () = assert!(
    PAGE_TABLES_START + 6 * 4 * KIB <= CMDLINE_START && CMDLINE_START + 2 * KIB <= LOW_RAM_END
);

#[cfg(test)]
mod tests;
