//! The base address registers (BARs) of a function: `resource` of its directory in sysfs, one line a region.

use serde::Serialize;

/// `IORESOURCE_IO` and so on, include/linux/ioport.h.
const IO: u64 = 0x100;
const MEMORY: u64 = 0x200;
const PREFETCHABLE: u64 = 0x2000;
const MEMORY_64: u64 = 0x10_0000;

/// BARs of an ordinary function (PCI 3.0 §6.2.5).
const BARS: usize = 6;
/// The line behind them is the expansion ROM's.
const ROM: usize = 6;

/// What kind of addresses a BAR claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Mem32,
    /// Memory anywhere; it takes the next BAR's register, too.
    Mem64,
}

/// One base address register that claims something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bar {
    /// 0 to 5.
    pub index: usize,
    pub kind: BarKind,
    pub prefetchable: bool,
    /// Bytes.
    pub size: u64,
}

/// The BARs and the size of the expansion ROM in bytes. Lines that say nothing sensible claim nothing.
pub(super) fn parse(resource: &str) -> (Vec<Bar>, Option<u64>) {
    let mut bars = Vec::new();
    let mut rom = None;
    for (index, line) in resource.lines().enumerate().take(ROM + 1) {
        let Some((size, flags)) = region(line) else {
            continue;
        };
        if index == ROM {
            rom = Some(size);
        } else if index < BARS
            && let Some(kind) = kind(flags)
        {
            bars.push(Bar {
                index,
                kind,
                prefetchable: flags & PREFETCHABLE != 0,
                size,
            });
        }
    }
    (bars, rom)
}

fn kind(flags: u64) -> Option<BarKind> {
    match (flags & IO != 0, flags & MEMORY != 0) {
        (true, false) => Some(BarKind::Io),
        (false, true) if flags & MEMORY_64 != 0 => Some(BarKind::Mem64),
        (false, true) => Some(BarKind::Mem32),
        _ => None,
    }
}

/// Size and flags of `START END FLAGS`; none of a region that is not there.
fn region(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_ascii_whitespace().map(|word| {
        word.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
    });
    let (start, end, flags) = (words.next()??, words.next()??, words.next()??);
    let size = end.checked_sub(start)?.checked_add(1)?;
    (flags != 0).then_some((size, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";

    #[test]
    fn the_bars_of_a_gpu_are_read() {
        let text = [
            "0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200\n",
            "0x000000e000000000 0x000000efffffffff 0x000000000014220c\n",
            EMPTY,
            "0x000000f000000000 0x000000f001ffffff 0x000000000014220c\n",
            EMPTY,
            "0x000000000000e000 0x000000000000e07f 0x0000000000040101\n",
            "0x00000000f7000000 0x00000000f707ffff 0x0000000000046200\n",
            "0x00000000f8000000 0x00000000f8ffffff 0x0000000000040200\n",
        ]
        .concat();
        let (bars, rom) = parse(&text);
        let seen: Vec<_> = bars
            .iter()
            .map(|bar| (bar.index, bar.kind, bar.prefetchable, bar.size))
            .collect();
        assert_eq!(
            seen,
            [
                (0, BarKind::Mem32, false, 16 << 20),
                (1, BarKind::Mem64, true, 64 << 30),
                (3, BarKind::Mem64, true, 32 << 20),
                (5, BarKind::Io, false, 128),
            ]
        );
        assert_eq!(rom, Some(512 << 10));
    }

    #[test]
    fn bars_below_a_page_keep_their_size() {
        let (bars, rom) = parse("0xfe000010 0xfe00001f 0x40200\n");
        assert_eq!(bars.len(), 1);
        assert_eq!((bars[0].size, rom), (16, None));
    }

    #[test]
    fn nonsense_claims_nothing() {
        for text in [
            "",
            "\n\n\n",
            "0x10 0x1f",
            "10 1f 200",
            "0x1f 0x10 0x200",
            "0x0 0xffffffffffffffff 0x200",
            "0x0 0xf 0x300",
            "0x0 0xf 0x1",
            "0xfffffffffffffffff 0x0 0x200",
            "\u{fffd}\u{fffd} 0x 0x200",
        ] {
            assert_eq!(parse(text), (Vec::new(), None), "{text:?}");
        }
    }
}
