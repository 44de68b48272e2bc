//! Random requests, compared with a model. The seeds are fixed: a failure repeats.

use super::*;

const SECTORS: u64 = 512;

on_both_engines!(
    random_requests_agree_with_a_model,
    random_requests_agree_with_a_model_under_o_direct
);

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

struct Pending {
    kind: u32,
    sector: u64,
    sectors: u64,
    unmap: bool,
    data: Vec<Part>,
    status_at: u64,
}

fn random_requests_agree_with_a_model(engine: EngineKind) {
    for (seed, event_idx) in [(1, true), (2, false), (3, true)] {
        compare(engine, seed, event_idx, false);
    }
}

fn random_requests_agree_with_a_model_under_o_direct(engine: EngineKind) {
    compare(engine, 4, true, true);
}

fn compare(engine: EngineKind, seed: u64, event_idx: bool, direct: bool) {
    let mut setup = Setup::new(engine);
    setup.sectors = SECTORS;
    setup.event_idx = event_idx;
    setup.direct = direct;
    let mut rig = setup.start();
    let mut model = rig.on_disk(0, SECTORS as usize * 512);
    let mut random = Random(0x1234_5678_9ABC_DEF1 ^ (seed << 40));
    for _ in 0..300 {
        let batch = offer_batch(&mut rig, &mut random);
        let written: Vec<Vec<u8>> = batch
            .iter()
            .map(|request| gathered(&rig, request))
            .collect();
        rig.driver.kick();
        rig.driver.wait(batch.len() as u16);
        for (request, written) in batch.iter().zip(written) {
            assert_eq!(rig.driver.read(request.status_at, 1), [OK]);
            let bytes = (request.sectors * 512) as usize;
            let place = (request.sector * 512) as usize..(request.sector * 512) as usize + bytes;
            match request.kind {
                kind::IN => assert_eq!(gathered(&rig, request), model[place]),
                kind::OUT => model[place].copy_from_slice(&written),
                kind::FLUSH => {}
                _ => model[place].fill(0),
            }
        }
    }
    assert_eq!(rig.on_disk(0, SECTORS as usize * 512), model);
    assert_eq!(rig.file.as_file().metadata().unwrap().len(), SECTORS * 512);
    assert_eq!(
        (rig.block.metrics().malformed, rig.block.metrics().failed),
        (0, 0)
    );
}

/// The request's data in guest RAM.
fn gathered(rig: &Rig, request: &Pending) -> Vec<u8> {
    (request.data.iter())
        .flat_map(|&(at, length, _)| rig.driver.read(at, length as usize))
        .collect()
}

/// Offers requests whose ranges do not touch each other, so that their order does not matter.
fn offer_batch(rig: &mut Rig, random: &mut Random) -> Vec<Pending> {
    let mut batch: Vec<Pending> = Vec::new();
    for i in 0..1 + random.below(12) {
        let kinds = [
            kind::IN,
            kind::IN,
            kind::OUT,
            kind::OUT,
            kind::FLUSH,
            kind::DISCARD,
            kind::WRITE_ZEROES,
        ];
        let kind = kinds[random.below(kinds.len() as u64) as usize];
        let sectors = 1 + random.below(40);
        let sector = random.below(SECTORS - sectors);
        let overlaps = |other: &Pending| {
            sector < other.sector + other.sectors && other.sector < sector + sectors
        };
        if kind != kind::FLUSH && batch.iter().any(overlaps) {
            continue;
        }
        // 64 KiB of RAM for each request: header, status, indirect table, then data.
        let base = BUFFER + i * 0x1_0000;
        let request = Pending {
            kind,
            sector,
            sectors: if kind == kind::FLUSH { 0 } else { sectors },
            unmap: kind == kind::WRITE_ZEROES && random.below(2) == 0,
            data: data(kind, sectors as u32 * 512, base + 0x2000, random),
            status_at: base + 0x40,
        };
        offer(rig, &request, base, random);
        batch.push(request);
    }
    batch
}

/// Cuts `bytes` into descriptors of any length at any address.
fn data(kind: u32, bytes: u32, base: u64, random: &mut Random) -> Vec<Part> {
    let (mut left, write) = match kind {
        kind::IN => (bytes, true),
        kind::OUT => (bytes, false),
        _ => return Vec::new(),
    };
    let aligned = random.below(2) == 0;
    let (mut at, mut parts) = (base, Vec::new());
    while left > 0 {
        let most = if parts.len() >= 9 {
            left
        } else {
            (1 + random.below(u64::from(left)) as u32).min(left)
        };
        let length = if aligned {
            most.next_multiple_of(512).min(left)
        } else {
            most
        };
        at += if aligned { 0 } else { random.below(50) };
        parts.push((at, length, write));
        at += u64::from(length);
        left -= length;
    }
    parts
}

fn offer(rig: &mut Rig, request: &Pending, base: u64, random: &mut Random) {
    let driver = &mut rig.driver;
    driver.header(base, request.kind, request.sector);
    driver.write(request.status_at, &[NONE]);
    let mut parts = vec![(base, 16, false)];
    match request.kind {
        kind::OUT => {
            let fill = random.below(255) as u8;
            for &(at, length, _) in &request.data {
                let bytes: Vec<u8> = (0..length).map(|i| fill.wrapping_add(i as u8)).collect();
                driver.write(at, &bytes);
            }
        }
        kind::DISCARD | kind::WRITE_ZEROES => {
            driver.write(
                base + 0x80,
                &range(
                    request.sector,
                    request.sectors as u32,
                    u32::from(request.unmap),
                ),
            );
            parts.push((base + 0x80, 16, false));
        }
        _ => {}
    }
    parts.extend_from_slice(&request.data);
    parts.push((request.status_at, 1, true));
    let head = if random.below(2) == 0 {
        driver.indirect_chain(base + 0x1000, &parts)
    } else {
        driver.chain(&parts)
    };
    driver.offer(head);
}
