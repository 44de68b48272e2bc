use super::super::tests::report;
use super::*;

/// What stands between the tags, those left out.
fn text(page: &str) -> String {
    let parts = page.split('<').skip(1).filter_map(|tag| {
        let (tag, text) = tag.split_once('>')?;
        (!tag.starts_with("style")).then_some(text)
    });
    let text: Vec<_> = parts.collect();
    let text = text.join(" ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The page's elements close in the order in which they opened, and none is where it may not be (HTML, "Kinds of content").
fn nested(page: &str) -> Result<(), String> {
    const VOID: [&str; 3] = ["meta", "link", "!DOCTYPE"];
    /// In these there are words and [`INLINE`] alone.
    const WORDS: [&str; 12] = [
        "p", "span", "h1", "h2", "h3", "a", "strong", "abbr", "code", "pre", "summary", "dt",
    ];
    const INLINE: [&str; 5] = ["span", "a", "strong", "abbr", "code"];
    /// What is in those is one of these, and nowhere else.
    const INSIDE: [(&str, &str); 9] = [
        ("tr", "thead tbody"),
        ("thead", "table"),
        ("tbody", "table"),
        ("th", "tr"),
        ("td", "tr"),
        ("dt", "dl"),
        ("dd", "dl"),
        ("li", "ul"),
        ("figcaption", "figure"),
    ];
    let mut open: Vec<&str> = Vec::new();
    for tag in page.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').ok_or("a tag without its end")?;
        let name = tag.split(' ').next().unwrap_or_default();
        if let Some(name) = name.strip_prefix('/') {
            let last = open.pop();
            if last != Some(name) {
                return Err(format!("{name} ends where {last:?} is open"));
            }
            continue;
        }
        let parent = open.last().copied().unwrap_or_default();
        if WORDS.contains(&parent) && !INLINE.contains(&name) {
            return Err(format!("{name} in {parent}"));
        }
        let places = INSIDE.iter().filter(|(inner, _)| *inner == name);
        for (_, places) in places {
            if !places.split(' ').any(|place| place == parent) {
                return Err(format!("{name} in {parent}"));
            }
        }
        if !VOID.contains(&name) {
            open.push(name);
        }
    }
    if open.is_empty() {
        Ok(())
    } else {
        Err(format!("{open:?} are open at the end"))
    }
}

/// All values that an attribute has.
fn attributes<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!(" {name}=\"");
    let rest = page.split(&*begin).skip(1);
    rest.filter_map(|rest| Some(rest.split_once('"')?.0))
        .collect()
}

/// Like [`report`], with strings that would be markup, and numbers that no measurement gives.
fn hostile(clock: Clock) -> Report {
    let mut report = report(clock);
    let bad = "</title></style></pre><script src=//evil>&\"' onload=x".to_owned();
    report.title.clone_from(&bad);
    report.begun = u64::MAX;
    report.flags = vec!["--image".to_owned(), bad.clone()];
    let environment = report.environment.as_mut().unwrap();
    environment.host.clone_from(&bad);
    environment.tenant.clone_from(&bad);
    for outcome in &mut report.experiments {
        outcome.name.clone_from(&bad);
        outcome.title.clone_from(&bad);
        outcome.failed.insert(Backend::Container, bad.clone());
        outcome.notes.insert(Backend::Vm, bad.clone());
        for series in &mut outcome.figures {
            series.title.clone_from(&bad);
        }
    }
    let odd = [f64::MAX, -f64::MAX, 0.0, f64::MIN_POSITIVE];
    for (backend, at) in [(Backend::Vm, 0), (Backend::Container, 1)] {
        let values = Values {
            median: odd[at],
            spread: Some(f64::MAX),
            unstable: true,
            runs: odd.to_vec(),
        };
        report.experiments[0].figures[0].of.insert(backend, values);
    }
    report.experiments.push(Outcome {
        name: String::new(),
        title: String::new(),
        figures: Vec::new(),
        failed: Default::default(),
        notes: Default::default(),
    });
    report
}

#[test]
fn each_figure_and_failure_is_there_with_its_unit_runs_and_exits() {
    let page = html(&report(Clock::Instructions));
    let text = text(&page);
    for part in [
        "fief bench: instructions, a lower bound for VM cost",
        "lower bounds for machines",
        "emulated processor",
        "kvm_amd, nested paging",
        "crun 1.8.1",
        "vm A virtual machine",
        "1.01 k instr * ±20",
        "vm 1.01 k instr * unstable 2.00 VM exits 3 runs 20 % apart",
        "host 505 instr * unstable 3 runs 20 % apart",
        "vm 3.00 MiB 1 run",
        "host not measured",
        "vm : of 3 pages: a, b",
        "container was not measured: no runtime",
        "FIEF_HOST=emulated fief bench --only memory --runs 3 --image debian",
        "1 1000 500 2000 500 2 0",
        "Interrupted.",
        "Thu, 01 Jan 1970 00:00:00 GMT",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    // A bar and a whisker of the greatest run's length.
    assert!(page.contains("--share:0.8417"), "{page}");
    assert!(page.contains("--from:0.8333;--share:0.1667"), "{page}");
    assert_eq!(page.matches("<figure>").count(), 3);
}

#[test]
fn a_measurement_without_exits_says_so_beside_its_times() {
    let mut report = report(Clock::Instructions);
    let counted = text(&html(&report));
    assert!(!counted.contains("exits not counted"), "{counted}");
    report.experiments[0].figures.pop();
    let uncounted = text(&html(&report));
    assert!(uncounted.contains("VM exits not counted 3 runs"));
    assert!(!uncounted.contains("2.00 VM exits"));
}

#[test]
fn few_exits_are_not_none() {
    let mut report = report(Clock::Instructions);
    let exits = &mut report.experiments[0].figures[2];
    exits.of.get_mut(&Backend::Vm).unwrap().median = 0.00004;
    let few = text(&html(&report));
    assert!(few.contains("&lt; 0.01 VM exits"), "{few}");
    let exits = &mut report.experiments[0].figures[2];
    exits.of.get_mut(&Backend::Vm).unwrap().median = 0.0;
    let none = text(&html(&report));
    assert!(none.contains("instr 0 VM exits"), "{none}");
}

#[test]
fn a_command_line_is_one_for_a_shell() {
    for (word, line) in [
        ("vm,container,host", "vm,container,host"),
        ("/opt/crun-1.2", "/opt/crun-1.2"),
        ("an image", "'an image'"),
        ("$(id)", "'$(id)'"),
        ("", "''"),
    ] {
        assert_eq!(quoted(word), line);
        assert_eq!(shlex::split(line), Some(vec![word.to_owned()]));
    }
}

#[test]
fn a_count_of_nothing_is_a_figure() {
    let mut report = report(Clock::Seconds);
    let figure = &mut report.experiments[1].figures[0];
    (figure.name, figure.title) = ("leaks".to_owned(), "leaks".to_owned());
    figure.unit = Unit::Number;
    let values = figure.of.get_mut(&Backend::Vm).unwrap();
    (values.median, values.runs) = (0.0, vec![0.0]);
    let text = text(&html(&report));
    assert!(text.contains("leaks vm 0 1 run"), "{text}");
}

#[test]
fn a_failure_after_some_runs_is_told_as_such() {
    let mut report = report(Clock::Seconds);
    let failed = &mut report.experiments[0].failed;
    failed.insert(Backend::Vm, "it is gone".to_owned());
    report.complete = true;
    let text = text(&html(&report));
    assert!(text.contains("vm failed after some runs: it is gone"));
    assert!(!text.contains("Interrupted"));
}

#[test]
fn ratios_are_of_seconds_alone() {
    let page = |clock| {
        let mut report = report(clock);
        for (backend, time) in [
            (Backend::Vm, 700.0),
            (Backend::Container, 300.0),
            (Backend::Host, 130.0),
        ] {
            let values = Values {
                median: time,
                spread: Some(0.0),
                unstable: false,
                runs: vec![time],
            };
            report.experiments[0].figures[0].of.insert(backend, values);
        }
        text(&html(&report))
    };
    // The positive control: they are found where they may be.
    let seconds = page(Clock::Seconds);
    assert!(
        seconds.contains("vm 700 ns 2.00 VM exits 5.38 times the host’s 1 run"),
        "{seconds}"
    );
    assert!(seconds.contains("vm, times the host’s"), "{seconds}");
    assert!(!seconds.contains("lower bound") && !seconds.contains("instr"));
    let instructions = page(Clock::Instructions);
    assert!(
        instructions.contains("vm 700 instr 2.00 VM exits 1 run"),
        "{instructions}"
    );
    // Of each to each.
    for ratio in ["5.38", "2.33", "2.31", "0.19", "0.43", "538", "233", "231"] {
        assert!(!instructions.contains(ratio), "{ratio} in\n{instructions}");
    }
    for word in ["times the", "×", "÷", "faster", "slower", "overhead"] {
        assert!(!instructions.contains(word), "{word} in\n{instructions}");
    }
    assert_eq!(
        instructions.matches("ratio").count(),
        1,
        "that there is none"
    );
}

#[test]
fn what_is_hostile_stays_text() {
    for clock in [Clock::Seconds, Clock::Instructions] {
        let page = html(&hostile(clock));
        assert!(!page.contains("<script") && !page.contains("NaN"));
        assert!(page.contains("&lt;script src=//evil&gt;&amp;&quot;"));
        // In a command line it is one word.
        assert!(page.contains("--image &quot;&lt;/title"), "{page}");
        assert_eq!(page.matches("</title>").count(), 1);
        assert_eq!(nested(&page), Ok(()));
    }
}

#[test]
fn elements_are_nested_as_html_wants_it() {
    for clock in [Clock::Seconds, Clock::Instructions] {
        assert_eq!(nested(&html(&report(clock))), Ok(()));
    }
    assert_eq!(nested(&html(&Report::new(0, Vec::new()))), Ok(()));
    // What the check refuses.
    for wrong in [
        "<p>",
        "<p><b></p></b>",
        "<p><div></div></p>",
        "<div><td></td></div>",
    ] {
        assert!(nested(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn nothing_is_loaded_from_anywhere() {
    let page = html(&report(Clock::Seconds));
    for outside in [
        "http:", "https:", "://", "src=", "url(", "@import", "<script", "<iframe", "<img",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    let links = attributes(&page, "href");
    assert!(links.len() > 2);
    for link in links {
        let own = link.strip_prefix('#');
        let there = own.is_some_and(|id| attributes(&page, "id").contains(&id));
        assert!(there || link == "data:,", "{link}");
    }
    let classes: Vec<_> = attributes(&page, "class");
    for class in classes.iter().flat_map(|all| all.split(' ')) {
        assert!(STYLE.contains(&format!(".{class}")), "{class} has no style");
    }
}
