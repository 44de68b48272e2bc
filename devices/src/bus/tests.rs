use std::sync::Mutex;

use super::*;

/// Remembers the last write and answers reads with its id.
#[derive(Default)]
struct Probe {
    id: u8,
    written: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl BusDevice for Probe {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(self.id);
        data[0] = u8::try_from(offset).unwrap();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.written.lock().unwrap().push((offset, data.to_vec()));
    }
}

fn probe(id: u8) -> Arc<Probe> {
    Arc::new(Probe {
        id,
        ..Probe::default()
    })
}

#[test]
fn an_access_reaches_the_device_with_the_offset_in_its_range() {
    let (low, high) = (probe(1), probe(2));
    let mut bus = Bus::new();
    bus.insert(0x2000, 0x10, high.clone()).unwrap();
    bus.insert(0x1000, 0x1000, low.clone()).unwrap();
    let mut data = [0; 4];
    bus.read(0x200C, &mut data);
    assert_eq!(data, [0x0C, 2, 2, 2]);
    bus.write(0x1008, &[9; 8]);
    assert_eq!(*low.written.lock().unwrap(), [(8, vec![9; 8])]);
    assert!(high.written.lock().unwrap().is_empty());
}

#[test]
fn an_access_that_hits_nothing_or_leaves_a_range_reads_ones_and_writes_nothing() {
    let (a, b) = (probe(1), probe(2));
    let mut bus = Bus::new();
    bus.insert(0x10, 8, a.clone()).unwrap();
    bus.insert(0x18, 8, b.clone()).unwrap();
    for (address, size) in [
        (0x0F, 1),
        (0x0F, 2),
        (0x16, 4),
        (0x1F, 2),
        (0x20, 1),
        (u64::MAX, 8),
        (0, 8),
    ] {
        let mut data = vec![0; size];
        bus.read(address, &mut data);
        assert_eq!(data, vec![0xFF; size], "{size} bytes at {address:#x}");
        bus.write(address, &data);
    }
    assert!(a.written.lock().unwrap().is_empty());
    assert!(b.written.lock().unwrap().is_empty());
}

#[test]
fn a_range_at_the_end_of_the_address_space_is_reachable() {
    let mut bus = Bus::new();
    bus.insert(u64::MAX, 1, probe(3)).unwrap();
    let mut data = [7];
    bus.read(u64::MAX, &mut data);
    assert_eq!(data, [0]);
}

#[test]
fn overlapping_empty_and_wrapping_ranges_are_refused() {
    let mut bus = Bus::new();
    bus.insert(0x100, 0x10, probe(1)).unwrap();
    for (start, length) in [(0x100, 1), (0x10F, 1), (0xFF, 2), (0, 0x1000), (0x108, 4)] {
        assert!(
            matches!(
                bus.insert(start, length, probe(2)),
                Err(BusError::Overlap { .. })
            ),
            "{length:#x} bytes at {start:#x}"
        );
    }
    assert_eq!(
        bus.insert(0x200, 0, probe(2)),
        Err(BusError::Empty { start: 0x200 })
    );
    assert!(matches!(
        bus.insert(u64::MAX, 2, probe(2)),
        Err(BusError::BeyondAddressSpace { .. })
    ));
    bus.insert(0xFF, 1, probe(2)).unwrap();
    bus.insert(0x110, 1, probe(2)).unwrap();
}
