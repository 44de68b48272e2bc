//! The report on a terminal.

use super::{Clock, Report, Series, percent, show};
use crate::experiments::EXITS;
use crate::subject::Backend;

/// What every report of instructions says beneath its figures.
pub const LOWER_BOUND: &str = "\
Instructions of an emulated processor, user and system together: what they leave out, world switches, nested page walks and caches,
costs virtual machines more than others. So these are lower bounds for machines, to be read beside their exits; no ratio of times
follows from them.";

/// All that was found, a line for each figure.
pub fn table(report: &Report) -> String {
    let (backends, clock) = (report.backends(), report.clock());
    let names: Vec<_> = backends
        .iter()
        .map(|one| one.name().to_uppercase())
        .collect();
    let mut header = vec!["EXPERIMENT", "FIGURE"];
    header.extend(names.iter().map(String::as_str));
    let mut rows = Vec::new();
    for outcome in &report.experiments {
        for (number, series) in outcome.figures.iter().enumerate() {
            if !is_told(series) {
                continue;
            }
            let name = if number == 0 { &*outcome.name } else { "" };
            let mut row = vec![name.to_owned(), series.title.clone()];
            row.extend(backends.iter().map(|backend| cell(series, backend, clock)));
            rows.push(row);
        }
    }
    let mut text = fief::table::table(&header, rows);
    let failed = report.experiments.iter().flat_map(|outcome| {
        let each = outcome.failed.iter();
        each.map(|(backend, why)| format!("{}, {}: {why}\n", outcome.name, backend.name()))
    });
    let failed: String = failed.collect();
    if !failed.is_empty() {
        text += "\nNot measured:\n";
        text += &failed;
    }
    for outcome in &report.experiments {
        for (backend, note) in &outcome.notes {
            text += &format!("\n{}, {}: {note}\n", outcome.name, backend.name());
        }
    }
    text += "\nMedians, and how far the runs are apart in percent of them";
    text += if clock == Clock::Instructions {
        "; * by more than 5.\n\n"
    } else {
        ".\n"
    };
    if clock == Clock::Instructions {
        text += LOWER_BOUND;
        text.push('\n');
    }
    text
}

/// Nobody's exits are no figure. Other counts are, 0 of them most of all.
pub fn is_told(series: &Series) -> bool {
    series.name != EXITS.name || series.of.values().any(|values| values.median != 0.0)
}

fn cell(series: &Series, backend: &Backend, clock: Clock) -> String {
    let Some(values) = series.of.get(backend) else {
        return "-".to_owned();
    };
    let mut text = show(values.median, series.unit, clock);
    if let Some(spread) = values.spread {
        text += &format!(" ±{}", percent(spread));
    }
    if values.unstable {
        text.push('*');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn the_table_has_each_figure_and_says_what_is_missing() {
        let text = table(&report(Clock::Instructions));
        for part in [
            "EXPERIMENT",
            "VM",
            "CONTAINER",
            "HOST",
            "1.01 k instr ±20*",
            "505 instr",
            "2.00 ±100",
            "3.00 MiB",
            "memory, container: no runtime",
            "\nmemory, vm: of 3 pages: a, b\n",
            "lower bounds for machines",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(text.lines().all(|line| line == line.trim_end()));
        let seconds = table(&report(Clock::Seconds));
        assert!(
            seconds.contains("1.01 µs") && !seconds.contains("lower bound"),
            "{seconds}"
        );
        assert!(!seconds.contains('*'));
    }

    #[test]
    fn a_count_of_nothing_is_a_figure_and_nobodys_exits_are_none() {
        let mut report = report(Clock::Seconds);
        for series in &mut report.experiments[0].figures {
            let values = series.of.values_mut();
            values.for_each(|values| values.median = 0.0);
        }
        assert!(!table(&report).contains("VM exits"));
        report.experiments[0].figures[2].name = "leaks".to_owned();
        report.experiments[0].figures[2].title = "leaks".to_owned();
        assert!(table(&report).contains("leaks"));
    }
}
