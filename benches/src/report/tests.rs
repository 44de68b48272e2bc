use super::*;

pub fn environment(clock: Clock) -> Environment {
    Environment {
        clock,
        host: "emulated".to_owned(),
        kernel: "6.12".to_owned(),
        processor: "a processor".to_owned(),
        processors: 1,
        memory: "4 GiB".to_owned(),
        kvm: "kvm_amd, nested paging".to_owned(),
        fief: "fief 0.1.0".to_owned(),
        runtime: "crun 1.8.1".to_owned(),
        image: "debian".to_owned(),
        guest_kernel: "debian".to_owned(),
        tenant: "1 processor".to_owned(),
        peers: BTreeMap::new(),
    }
}

/// A report of two experiments; the second has a note of a machine, and failed in a container.
pub fn report(clock: Clock) -> Report {
    let flags = ["--runs", "3", "--image", "debian"].map(str::to_owned);
    let mut report = Report::new(0, flags.into());
    report.hear(Event::Begun {
        environment: Box::new(environment(clock)),
        steps: 9,
    });
    let measured = |experiment: &str, backend, values: &[f64]| Event::Measured {
        experiment: experiment.to_owned(),
        backend,
        values: values.to_vec(),
    };
    for (cpu, exits) in [(1000.0, 2.0), (1010.0, 2.0), (1200.0, 4.0)] {
        report.hear(measured("getpid", Backend::Vm, &[cpu, 2000.0, exits]));
        report.hear(measured("getpid", Backend::Host, &[cpu / 2.0, 500.0, 0.0]));
    }
    report.hear(measured("memory", Backend::Vm, &[3.0 * 1024.0 * 1024.0]));
    for note in ["no note yet", "of 3 pages: a, b"] {
        report.hear(Event::Noted {
            experiment: "memory".to_owned(),
            backend: Backend::Vm,
            note: note.to_owned(),
        });
    }
    report.hear(Event::Failed {
        experiment: "memory".to_owned(),
        backend: Backend::Container,
        why: "no runtime".to_owned(),
    });
    report
}

#[test]
fn what_a_runner_tells_is_kept_run_by_run() {
    let mut report = report(Clock::Instructions);
    assert!(
        report.title.contains("a lower bound for VM cost"),
        "{}",
        report.title
    );
    assert_eq!(
        report.backends(),
        [Backend::Vm, Backend::Container, Backend::Host]
    );
    let getpid = &report.experiments[0];
    let cpu = &getpid.figures[0].of[&Backend::Vm];
    assert_eq!((cpu.median, cpu.runs.len()), (1010.0, 3));
    assert!(cpu.unstable && cpu.spread.unwrap() > 0.19);
    let time = &getpid.figures[1].of[&Backend::Vm];
    assert!(!time.unstable);
    // Exits are no instructions.
    assert!(!getpid.figures[2].of[&Backend::Vm].unstable);
    assert_eq!(
        report.experiments[1].failed[&Backend::Container],
        "no runtime"
    );
    // The last run's. What older files have none of is read, too.
    assert_eq!(
        report.experiments[1].notes[&Backend::Vm],
        "of 3 pages: a, b"
    );
    let older = serde_json::to_value(getpid).unwrap();
    assert!(older.get("notes").is_none());
    assert_eq!(&serde_json::from_value::<Outcome>(older).unwrap(), getpid);
    assert!(!report.complete);
    report.hear(Event::Ended);
    assert!(report.complete);
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}

#[test]
fn an_experiment_that_nobody_knows_is_left_out() {
    let mut report = Report::new(0, Vec::new());
    report.hear(Event::Measured {
        experiment: "nothing".to_owned(),
        backend: Backend::Vm,
        values: vec![1.0],
    });
    assert!(report.experiments.is_empty());
}

#[test]
fn numbers_are_short_and_have_their_unit() {
    let time = |value, clock| show(value, Unit::Time, clock);
    assert_eq!(time(0.0, Clock::Seconds), "0 ns");
    assert_eq!(time(12.34, Clock::Seconds), "12.3 ns");
    assert_eq!(time(1_234_567.0, Clock::Seconds), "1.23 ms");
    assert_eq!(time(41_500_000.0, Clock::Instructions), "41.5 M instr");
    assert_eq!(
        show(3.5 * 1024.0 * 1024.0, Unit::Bytes, Clock::Seconds),
        "3.50 MiB"
    );
    assert_eq!(show(0.004, Unit::Number, Clock::Seconds), "0.00");
    assert_eq!(show(17.0, Unit::Count, Clock::Seconds), "17");
    assert_eq!(show(-5.0, Unit::Time, Clock::Seconds), "-5.00 ns");
}

#[test]
fn a_file_is_read_again_and_one_that_is_no_report_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        Report::read(&path)
    };
    let report = report(Clock::Instructions);
    let mut json = serde_json::to_value(&report).unwrap();
    assert_eq!(read(&json.to_string()).unwrap(), report);
    for text in ["", "{}", "[1]", "{\"version\": 1}", "<html>"] {
        let error = read(text).unwrap_err();
        assert!(matches!(error, Error::NoReport { .. }), "{text}: {error}");
        assert!(error.to_string().contains("fief bench --json FILE"));
    }
    // Whatever else is in it.
    json["version"] = 2.into();
    json["experiments"] = "nothing known".into();
    let error = read(&json.to_string()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::OtherVersion {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    let error = Report::read(&path).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}
