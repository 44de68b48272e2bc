//! One line of `fief gpu list`: as much as fits into 100 columns; the rest is in `--json`.

use fief_host::pci::{Bar, BarKind, Function, Passable};

pub(super) const HEADER: [&str; 7] = [
    "ADDRESS", "NAME", "GROUP", "DRIVER", "RESET", "BARS", "PASSABLE",
];

/// Widths of columns in characters. With the address (12), the group (5), the last column (8) and the space between
/// columns (18) they make 100.
const NAME: usize = 26;
const DRIVER: usize = 10;
const RESET: usize = 6;
const BARS: usize = 15;

pub(super) fn row(function: &Function, passable: Passable) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        function.address.to_string(),
        shortened(&function.name(), NAME),
        or_none(function.group.map(|group| group.to_string())),
        shortened(&or_none(function.driver.clone()), DRIVER),
        shortened(&or_none(function.resets.first().cloned()), RESET),
        shortened(&bars(&function.bars), BARS),
        match passable {
            Passable::Ready => "ready",
            Passable::AfterBinding => "bind",
            Passable::No => "no",
        }
        .to_owned(),
    ]
}

/// Memory regions, as in `16M+64G+32M`. Ports are hardly ever of interest.
fn bars(bars: &[Bar]) -> String {
    let memory = bars.iter().filter(|bar| bar.kind != BarKind::Io);
    let sizes: Vec<_> = memory.map(|bar| size(bar.size)).collect();
    if sizes.is_empty() {
        return "-".to_owned();
    }
    sizes.join("+")
}

/// BARs are powers of two: the largest unit leaves no rest.
fn size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    units
        .iter()
        .find(|(shift, _)| bytes >> shift != 0)
        .map_or_else(
            || format!("{bytes}B"),
            |(shift, unit)| format!("{}{unit}", bytes >> shift),
        )
}

fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let start: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{}…", start.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(kind: BarKind, size: u64) -> Bar {
        Bar {
            index: 0,
            kind,
            prefetchable: false,
            size,
        }
    }

    #[test]
    fn regions_are_told_in_their_own_units() {
        let all = [
            bar(BarKind::Mem32, 16 << 20),
            bar(BarKind::Mem64, 64 << 30),
            bar(BarKind::Io, 128),
            bar(BarKind::Mem32, 16),
        ];
        assert_eq!(bars(&all), "16M+64G+16B");
        assert_eq!(bars(&[bar(BarKind::Io, 8)]), "-");
        assert_eq!(size(4096), "4K");
        assert_eq!(size(2 << 40), "2T");
        assert_eq!(size(u64::MAX), "16777215T");
    }

    #[test]
    fn long_names_end_in_dots() {
        assert_eq!(
            shortened("GA102 [GeForce RTX 3090]", 26),
            "GA102 [GeForce RTX 3090]"
        );
        assert_eq!(shortened("GA102 [GeForce RTX 3090]", 7), "GA102…");
        assert_eq!(shortened("ééé", 2), "é…");
    }
}
