use super::*;

fn sample(at: Instant, cpu_ns: u64) -> Sample {
    Sample {
        name: "a".to_owned(),
        at,
        started: now(),
        cpu_ns: Some(cpu_ns),
        memory: Some(64 << 20),
        memory_limit: Some(128 << 20),
        threads: None,
        disk_used: 1 << 20,
        disk_size: 1 << 30,
        read: Some(0),
        written: None,
        received: None,
        sent: None,
    }
}

#[test]
fn processor_time_is_a_share_of_what_passed() {
    let begin = Instant::now();
    let before = sample(begin, 1_000_000_000);
    let after = sample(begin + Duration::from_secs(2), 4_000_000_000);
    let percent = |before: &Sample, after: &Sample| Row::new(Some(before), after, None).cpu_percent;
    assert_eq!(percent(&before, &after), Some(150.0));
    // Another run of the tenant, whose group counts from 0 again.
    assert_eq!(percent(&after, &before), None);
    assert_eq!(Row::new(None, &after, None).cpu_percent, None);
}

#[test]
fn what_is_not_known_is_a_dash_and_not_in_the_json() {
    let row = Row::new(None, &sample(Instant::now(), 1), None);
    let cells = row.cells();
    assert_eq!(cells.len(), HEADER.len());
    assert_eq!(
        cells[1..5],
        ["-", "64 MiB of 128 MiB", "-", "1 MiB of 1 GiB"]
    );
    assert_eq!(cells[5..8], ["0 B", "-", "-"]);
    let json = serde_json::to_value(&row).unwrap();
    assert_eq!(json["memory_bytes"], 64 << 20);
    assert!(json.get("cpu_percent").is_none() && json.get("disk_written_bytes").is_none());
}
