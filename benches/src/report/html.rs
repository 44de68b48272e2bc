//! The report as one page: nothing is loaded, nothing runs. It knows no experiment by name; only [`EXITS`] stand beside times
//! instead of having a chart.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use clap::ValueEnum;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::table::{LOWER_BOUND, is_told};
use super::{Clock, Environment, Outcome, Report, Series, Unit, Values, percent, show, step};
use crate::experiments::EXITS;
use crate::subject::Backend;

const STYLE: &str = include_str!("page.css");
/// Whoever changes the file: nothing is fetched, no script runs.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";
/// The first second of the year 10000, where dates end.
const LAST: u64 = 253_402_300_800;

/// All that was found, as HTML.
pub fn html(report: &Report) -> String {
    let clock = report.clock();
    let (experiments, backends) = (&report.experiments, report.backends());
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Else browsers ask the server for one.
                link rel="icon" href="data:,";
                title { (report.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (report.title) }
                    p.lead {
                        "What isolation costs and what it buys: the same work, with the same files and limits, done by each of these. "
                        "Shorter bars are better."
                    }
                    @if clock == Clock::Instructions {
                        p.notice { strong { "Instructions, not seconds. " } (LOWER_BOUND) }
                    }
                    @if !report.complete {
                        p.notice { strong { "Interrupted. " } "Here is what was finished; experiments or runs are missing." }
                    }
                }
                main {
                    section.top {
                        (compared(report, &backends))
                        (machine(report))
                    }
                    section {
                        h2 { "All medians" }
                        (summary(experiments, &backends, clock))
                    }
                    section {
                        h2 { "Experiments" }
                        @for (number, outcome) in experiments.iter().enumerate() {
                            (experiment(number, outcome, &backends, clock))
                        }
                    }
                    section {
                        h2 { "How to get these numbers" }
                        (reproduce(report))
                    }
                    section {
                        h2 { "Each run" }
                        p { "What each counted run gave, not rounded." }
                        @for outcome in experiments {
                            (runs(outcome, clock))
                        }
                    }
                }
            }
        }
    };
    page.into_string()
}

fn compared(report: &Report, backends: &[Backend]) -> Markup {
    let help = |backend: &Backend| match (backend, &report.environment) {
        (Backend::Peer(name), Some(environment)) => {
            let told = environment.peers.get(name);
            Some(format!(
                "Another monitor: {}",
                told.map_or("unknown", String::as_str)
            ))
        }
        _ => Some(backend.to_possible_value()?.get_help()?.to_string()),
    };
    let tenant = report.environment.as_ref().map(|one| &one.tenant);
    html! {
        div.card {
            h2 { "What is compared" }
            dl.legend {
                @for backend in backends {
                    dt { span class={ "swatch " (colour(backend)) } {} (backend.name()) }
                    dd { (help(backend).unwrap_or_default()) }
                }
                @if let Some(tenant) = tenant {
                    dt { "each has" }
                    dd { (tenant) }
                }
            }
            h3 { "How to read a chart" }
            p {
                "A bar is the median of the runs, from 0; bars of one chart have one scale. The line with ends, "
                span.example { span.whisker style="--from:0;--share:1" {} }
                ", goes from the least run to the greatest. “Apart” tells the same in percent of the median."
                @if report.clock() == Clock::Instructions {
                    " “Unstable”, or *: by more than 5 %, so do not build on it. “instr” are instructions, k a thousand, M a million."
                }
            }
        }
    }
}

/// The class that has its colour. Peers have one, and their names.
fn colour(backend: &Backend) -> &str {
    match backend {
        Backend::Peer(_) => "peer",
        own => own.name(),
    }
}

fn machine(report: &Report) -> Markup {
    let begun = report.begun.min(LAST - 1);
    let begun = UNIX_EPOCH.checked_add(Duration::from_secs(begun));
    html! {
        div.card {
            h2 { "On which machine" }
            @match &report.environment {
                Some(environment) => dl.pairs {
                    @for (name, value) in facts(environment) {
                        dt { (name) }
                        dd { (value) }
                    }
                    @if let Some(begun) = begun {
                        dt { "begun" }
                        dd { (httpdate::fmt_http_date(begun)) }
                    }
                },
                None => p { "The measurement ended before it told." },
            }
        }
    }
}

fn facts(environment: &Environment) -> Vec<(&'static str, String)> {
    vec![
        ("host", environment.host.clone()),
        ("kernel", environment.kernel.clone()),
        ("processor", environment.processor.clone()),
        ("processors", environment.processors.to_string()),
        ("memory", environment.memory.clone()),
        ("KVM", environment.kvm.clone()),
        ("fief", environment.fief.clone()),
        ("OCI runtime", environment.runtime.clone()),
        ("image", environment.image.clone()),
        ("guest kernel", environment.guest_kernel.clone()),
    ]
}

/// The VM exits of an experiment that has times for them to stand beside.
fn exits(outcome: &Outcome) -> Option<&Series> {
    let timed = outcome.figures.iter().any(|one| one.unit == Unit::Time);
    let mut figures = outcome.figures.iter();
    figures.find(|one| timed && is_exits(one))
}

fn is_exits(series: &Series) -> bool {
    series.name == EXITS.name
}

/// The figures that have a chart, and a line in the summary.
fn charted(outcome: &Outcome) -> impl Iterator<Item = &Series> {
    let beside = exits(outcome).is_some();
    let figures = outcome.figures.iter();
    figures.filter(move |one| is_told(one) && !one.of.is_empty() && !(beside && is_exits(one)))
}

fn summary(experiments: &[Outcome], backends: &[Backend], clock: Clock) -> Markup {
    let counted = experiments.iter().any(|one| exits(one).is_some());
    let counted = counted && backends.contains(&Backend::Vm);
    let ratios = clock == Clock::Seconds && backends.contains(&Backend::Host);
    let compared = backends.iter().filter(|one| **one != Backend::Host);
    let compared: Vec<_> = compared.filter(|_| ratios).collect();
    html! {
        div.scroll tabindex="0" role="region" aria-label="All medians" {
            table {
                thead {
                    tr {
                        th scope="col" { "experiment" }
                        th scope="col" { "figure" }
                        @for backend in backends {
                            th.number scope="col" { span class={ "swatch " (colour(backend)) } {} (backend.name()) }
                        }
                        @if counted { th.number scope="col" { "VM exits" } }
                        @for backend in &compared {
                            th.number.ratio scope="col" { (backend.name()) ", times the host’s" }
                        }
                    }
                }
                @for (number, outcome) in experiments.iter().enumerate() {
                    @let figures: Vec<_> = charted(outcome).collect();
                    tbody {
                        @if figures.is_empty() {
                            tr {
                                th scope="row" { a href={ "#experiment-" (number) } { (outcome.name) } }
                                td colspan=(1 + backends.len() + compared.len() + usize::from(counted)) { "not measured" }
                            }
                        }
                        @for (line, series) in figures.iter().enumerate() {
                            tr {
                                @if line == 0 {
                                    th scope="rowgroup" rowspan=(figures.len()) {
                                        a href={ "#experiment-" (number) } { (outcome.name) }
                                    }
                                }
                                td { (series.title) }
                                @for backend in backends {
                                    (cell(outcome, series, backend, clock))
                                }
                                @if counted {
                                    td.number { (beside(outcome, series, &Backend::Vm).unwrap_or("–".to_owned())) }
                                }
                                @for backend in &compared {
                                    td.number { (times_the_host(series, backend, clock).unwrap_or_default()) }
                                }
                            }
                        }
                    }
                }
            }
        }
        p.small {
            "Medians, and how far the runs are apart in percent of them"
            @if clock == Clock::Instructions { "; * by more than 5" }
            "."
            @if counted { " VM exits: those of the virtual machine in the same work." }
        }
    }
}

fn cell(outcome: &Outcome, series: &Series, backend: &Backend, clock: Clock) -> Markup {
    let Some(values) = series.of.get(backend) else {
        let failed = outcome.failed.contains_key(backend);
        return html! { td.number.missing { (if failed { "failed" } else { "–" }) } };
    };
    html! {
        td.number {
            (show(values.median, series.unit, clock))
            @if values.unstable { abbr title="the runs are apart by more than 5 %" { "*" } }
            " "
            // Also empty, it keeps the numbers beneath each other.
            span.spread { @if let Some(spread) = values.spread { "±" (percent(spread)) } }
            span class={ "thin " (colour(backend)) } style={ "--share:" (share(values.median, greatest(series))) } {}
        }
    }
}

/// The exits of a machine in what a figure of time is of.
fn beside(outcome: &Outcome, series: &Series, backend: &Backend) -> Option<String> {
    if series.unit != Unit::Time {
        return None;
    }
    let values = exits(outcome)?.of.get(backend)?;
    Some(match values.median {
        // Not none.
        few if few > 0.0 && few < 0.005 => "< 0.01".to_owned(),
        number => show(number, Unit::Number, Clock::Seconds),
    })
}

/// What it takes of what the host takes. Of instructions no such thing follows.
fn times_the_host(series: &Series, backend: &Backend, clock: Clock) -> Option<String> {
    if clock == Clock::Instructions || *backend == Backend::Host {
        return None;
    }
    let host = series.of.get(&Backend::Host)?.median;
    let own = series.of.get(backend)?.median;
    (host > 0.0).then(|| show(own / host, Unit::Number, clock))
}

/// The end of a chart's scale.
fn greatest(series: &Series) -> f64 {
    let all = series.of.values();
    let all = all.flat_map(|one| one.runs.iter().chain([&one.median]));
    all.copied().fold(0.0, f64::max)
}

/// A length as a part of the scale's; what is less than 0 has none.
fn share(value: f64, of: f64) -> String {
    let part = if of > 0.0 { value / of } else { 0.0 };
    format!("{:.4}", part.clamp(0.0, 1.0))
}

fn experiment(number: usize, outcome: &Outcome, backends: &[Backend], clock: Clock) -> Markup {
    let figures: Vec<_> = charted(outcome).collect();
    html! {
        article.card id={ "experiment-" (number) } {
            h3 { (outcome.title) " " code { (outcome.name) } }
            div.charts {
                @for series in &figures {
                    (chart(outcome, series, backends, clock))
                }
            }
            @if figures.is_empty() && outcome.failed.is_empty() {
                p { "Nothing was measured." }
            }
            @if !outcome.notes.is_empty() {
                ul.notes {
                    @for (backend, note) in &outcome.notes {
                        li { strong { (backend.name()) } ": " (note) }
                    }
                }
            }
            @if !outcome.failed.is_empty() {
                ul.failed {
                    @for (backend, why) in &outcome.failed {
                        @let some = figures.iter().any(|one| one.of.contains_key(backend));
                        li {
                            strong { (backend.name()) }
                            (if some { " failed after some runs: " } else { " was not measured: " })
                            (why)
                        }
                    }
                }
            }
        }
    }
}

fn chart(outcome: &Outcome, series: &Series, backends: &[Backend], clock: Clock) -> Markup {
    let scale = greatest(series);
    html! {
        figure {
            figcaption { (series.title) }
            @for backend in backends {
                @match series.of.get(backend) {
                    Some(values) => div class={ "row " (colour(backend)) } {
                        span.name { (backend.name()) }
                        span.track aria-hidden="true" {
                            span.bar style={ "--share:" (share(values.median, scale)) } {}
                            (whisker(&values.runs, scale))
                        }
                        span.value { (show(values.median, series.unit, clock)) }
                        (details(outcome, series, backend, values, clock))
                    },
                    None => div class={ "row " (colour(backend)) } {
                        span.name { (backend.name()) }
                        span.track aria-hidden="true" {}
                        span.value.missing { "not measured" }
                    },
                }
            }
        }
    }
}

fn whisker(runs: &[f64], scale: f64) -> Markup {
    let least = runs.iter().copied().fold(f64::INFINITY, f64::min);
    let most = runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = least.max(0.0);
    html! {
        @if runs.len() > 1 && most > 0.0 {
            span.whisker style={ "--from:" (share(least, scale)) ";--share:" (share(most - least, scale)) } {}
        }
    }
}

/// What is small beneath a value.
fn details(
    outcome: &Outcome,
    series: &Series,
    backend: &Backend,
    values: &Values,
    clock: Clock,
) -> Markup {
    let vm = backend.is_machine() && series.unit == Unit::Time;
    let ratio = times_the_host(series, backend, clock);
    let number = values.runs.len();
    html! {
        span.details {
            @if values.unstable { strong.unstable { "* unstable" } " " }
            @if vm {
                @match beside(outcome, series, backend) {
                    Some(exits) => strong { (exits) " VM exits" },
                    None => span { "VM exits not counted" },
                }
                " "
            }
            @if let Some(ratio) = ratio { span { (ratio) " times the host’s" } " " }
            span { (number) (if number == 1 { " run" } else { " runs" }) }
            @if let Some(spread) = values.spread {
                @if number > 1 { " " span { (percent(spread)) " % apart" } }
            }
        }
    }
}

fn reproduce(report: &Report) -> Markup {
    let emulated = report.clock() == Clock::Instructions;
    html! {
        p {
            "On the same machine, with the same fief, as root. Each command measures one experiment, after a run that is not counted; "
            "docs/benchmarks.md tells what each does."
            @if emulated { " The emulated host is started for the measurement, and stopped after it." }
        }
        dl.commands {
            @for outcome in &report.experiments {
                dt { (outcome.title) }
                dd { pre tabindex="0" { code { (command(report, outcome)) } } }
            }
        }
    }
}

/// What measures an experiment again.
fn command(report: &Report, outcome: &Outcome) -> String {
    let mut words = vec!["fief", "bench", "--only", &outcome.name];
    words.extend(report.flags.iter().map(String::as_str));
    let words: Vec<_> = words.into_iter().map(quoted).collect();
    let line = words.join(" ");
    match report.clock() {
        Clock::Seconds => line,
        Clock::Instructions => format!("FIEF_HOST=emulated {line}"),
    }
}

/// A word for a shell. The crate would quote commas, too, which need it only between braces.
fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/@=+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    // What no command line can hold, a NUL, is left out.
    shlex::try_quote(word).unwrap_or_default()
}

fn runs(outcome: &Outcome, clock: Clock) -> Markup {
    let each = outcome.figures.iter().filter(|one| !one.of.is_empty());
    let figures: Vec<_> = each.collect();
    let columns = || {
        let pairs = figures.iter();
        pairs.flat_map(|series| series.of.iter())
    };
    let most = columns().map(|(_, values)| values.runs.len()).max();
    html! {
        @if let Some(most) = most {
            details {
                summary { (outcome.title) " " code { (outcome.name) } }
                div.scroll tabindex="0" role="region" aria-label={ "Each run of " (outcome.name) } {
                    table {
                        thead {
                            tr {
                                th rowspan="2" scope="col" { "run" }
                                @for series in &figures {
                                    th.group colspan=(series.of.len()) scope="colgroup" {
                                        (series.title)
                                        @let unit = step(series.unit, clock);
                                        @if !unit.is_empty() { ", " (unit) }
                                    }
                                }
                            }
                            tr {
                                @for (backend, _) in columns() {
                                    th.number scope="col" { (backend.name()) }
                                }
                            }
                        }
                        tbody {
                            @for run in 0..most {
                                tr {
                                    th scope="row" { (run + 1) }
                                    @for (_, values) in columns() {
                                        td.number { (values.runs.get(run).map(f64::to_string).unwrap_or_default()) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
