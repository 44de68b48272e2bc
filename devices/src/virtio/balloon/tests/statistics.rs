//! What the guest says of its memory, and when it is asked.

use super::*;
use crate::virtio::mock::HOLE;

/// Packs figures as a driver does.
fn packed(figures: &[(u16, u64)]) -> Vec<u8> {
    let pack = |&(tag, value): &(u16, u64)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    figures.iter().flat_map(pack).collect()
}

impl Rig {
    /// Offers a statistics buffer and returns its head.
    fn say(&mut self, bytes: &[u8]) -> u16 {
        let driver = &mut self.drivers[STATISTICS];
        driver.write(DATA, bytes);
        let head = driver.chain(&[(DATA, bytes.len() as u32, false)]);
        driver.offer(head);
        driver.kick();
        head
    }
}

#[test]
fn every_figure_arrives_and_its_buffer_is_kept_until_new_ones_are_wanted() {
    let mut rig = Rig::new(ALL);
    let figures: Vec<_> = (0..16).map(|tag| (tag, 1000 + u64::from(tag))).collect();
    let report = rig.ask();
    let head = rig.say(&packed(&figures));
    let said = report.get().statistics;
    assert_eq!(said.swap_in, Some(1000));
    assert_eq!(said.free_memory, Some(1004));
    assert_eq!(said.total_memory, Some(1005));
    assert_eq!(said.available_memory, Some(1006));
    assert_eq!(said.direct_reclaim, Some(1015));
    assert_eq!(rig.drivers[STATISTICS].used_index(), 0);
    // Asked for: the buffer comes back, and what the driver then says goes to who asked.
    let report = rig.ask();
    assert_eq!(rig.drivers[STATISTICS].wait(1), [(head, 0)]);
    rig.say(&packed(&[(4, 7)]));
    let said = report.get().statistics;
    let expected = Statistics {
        free_memory: Some(7),
        ..Statistics::default()
    };
    assert_eq!(said, expected);
    assert_eq!(rig.balloon.control().report().statistics, expected);
}

#[test]
fn statistics_come_at_every_interval_the_first_at_once() {
    let mut rig = Rig::new(ALL);
    let report = rig.ask();
    let mut head = rig.say(&packed(&[(0, 1)]));
    report.get();
    rig.balloon.control().set_interval(1);
    for round in 2..4 {
        assert_eq!(rig.drivers[STATISTICS].wait(1), [(head, 0)]);
        head = rig.say(&packed(&[(0, round)]));
    }
}

#[test]
fn whoever_asks_when_there_is_nobody_to_answer_hears_what_is_known() {
    let mut rig = Rig::idle(ALL);
    rig.ask().get();
    rig.activate_all().unwrap();
    let report = rig.ask();
    rig.say(&packed(&[(5, 9)]));
    assert_eq!(report.get().statistics.total_memory, Some(9));
    // A pause before the driver has answered.
    let waiting = rig.ask();
    rig.balloon.suspend();
    assert_eq!(waiting.get().statistics.total_memory, Some(9));
    rig.balloon.reset();
    let said = rig.ask().get().statistics;
    assert_eq!(said, Statistics::default());
    // A device without the queue.
    let config = BalloonConfig {
        statistics: false,
        ..ALL
    };
    Rig::new(config).ask().get();
}

#[test]
fn odd_lengths_strange_tags_and_repeated_ones_do_no_harm() {
    let mut rig = Rig::new(ALL);
    let free = |value| packed(&[(4, value)]);
    let said = |rig: &mut Rig, bytes: &[u8]| {
        let report = rig.ask();
        rig.say(bytes);
        let statistics = report.get().statistics;
        rig.drivers[STATISTICS].collect();
        statistics.free_memory
    };
    assert_eq!(said(&mut rig, &free(1)), Some(1));
    // Cut off within the second figure.
    assert_eq!(said(&mut rig, &packed(&[(4, 2), (5, 3)])[..19]), Some(2));
    assert_eq!(said(&mut rig, &free(3)[..9]), None);
    assert_eq!(said(&mut rig, &[]), None);
    assert_eq!(
        said(&mut rig, &packed(&[(16, 1), (0xFFFF, 2), (4, 3)])),
        Some(3)
    );
    assert_eq!(
        said(&mut rig, &packed(&[(4, 1), (4, u64::MAX)])),
        Some(u64::MAX)
    );
    // As long as a buffer can be: what lies behind the first 32 figures is not looked at.
    let mut long = packed(&[(4, 5)]);
    long.extend(packed(&[(0xFFFF, 0); 31]));
    long.extend(packed(&[(4, 6); 100]));
    assert_eq!(said(&mut rig, &long), Some(5));
    assert_eq!(rig.metrics().malformed, 0);
}

#[test]
fn a_buffer_as_long_as_ram_is_read_no_further_than_a_short_one() {
    let mut rig = Rig::new(ALL);
    let report = rig.ask();
    let driver = &mut rig.drivers[STATISTICS];
    driver.write(DATA, &packed(&[(4, 5)]));
    // Ends far outside RAM, and nothing of it is needed.
    let head = driver.chain(&[(DATA, u32::MAX, false)]);
    driver.offer(head);
    driver.kick();
    let said = report.get().statistics;
    assert_eq!(said.free_memory, Some(5));
    rig.assert_serves();
}

#[test]
fn a_buffer_outside_ram_is_counted_and_kept_like_others() {
    let mut rig = Rig::new(ALL);
    let driver = &mut rig.drivers[STATISTICS];
    let head = driver.chain(&[(HOLE - 4, 20, false)]);
    driver.offer(head);
    driver.kick();
    let report = rig.ask();
    // The driver has one buffer: with the next it gets the first back.
    rig.say(&packed(&[(4, 5)]));
    assert_eq!(rig.drivers[STATISTICS].wait(1), [(head, 0)]);
    assert_eq!(report.get().statistics.free_memory, Some(5));
    assert_eq!(rig.metrics().malformed, 1);
}
