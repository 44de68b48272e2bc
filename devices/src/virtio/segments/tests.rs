use vm_memory::VolatileSlice;

use super::*;

/// Segments of these lengths over `memory`, one after the other.
fn segments(memory: &mut [u8], lengths: &[usize]) -> Segments {
    let mut segments = Segments::default();
    let whole = VolatileSlice::from(memory);
    let mut at = 0;
    for &length in lengths {
        segments.push(&whole.subslice(at, length).unwrap()).unwrap();
        at += length;
    }
    segments
}

#[test]
fn advancing_by_any_steps_visits_every_byte_once() {
    let pattern: Vec<u8> = (0..100).collect();
    for step in 1..=100 {
        let mut source = pattern.clone();
        let mut target = vec![0xFF; 100];
        let mut reading = segments(&mut source, &[1, 2, 30, 0, 60, 7]);
        let mut writing = segments(&mut target, &[50, 1, 49]);
        let mut left = 100;
        while left > 0 {
            let now = step.min(left);
            let mut bytes = vec![0; now];
            reading.copy_to(&mut bytes);
            writing.copy_from(&bytes);
            reading.advance(now);
            writing.advance(now);
            left -= now;
            let rest: usize = reading
                .remaining()
                .iter()
                .map(|vector| vector.iov_len)
                .sum();
            assert_eq!(rest, left);
        }
        assert_eq!(target, pattern, "steps of {step}");
    }
}

#[test]
fn advancing_beyond_the_end_leaves_nothing() {
    let mut memory = [0; 10];
    let mut segments = segments(&mut memory, &[4, 6]);
    segments.advance(11);
    assert!(segments.remaining().is_empty());
    segments.advance(usize::MAX);
    segments.copy_from(&[1; 10]);
    assert_eq!(memory, [0; 10]);
}

#[test]
fn alignment_is_that_of_every_address_and_every_length() {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let mut page = Page([0; 4096]);
    for (lengths, aligned) in [
        (&[512, 1024][..], true),
        (&[512, 1000], false),
        (&[500, 12, 512], false),
        (&[512, 4], false),
    ] {
        assert_eq!(
            segments(&mut page.0, lengths).aligned(512, 512),
            aligned,
            "{lengths:?}"
        );
    }
    assert!(segments(&mut page.0, &[512, 512]).aligned(4, 512));
    assert!(!segments(&mut page.0, &[512, 512]).aligned(4096, 512));
}

#[test]
fn there_are_at_most_as_many_as_one_system_call_takes() {
    let mut memory = [0; 1];
    let slice = VolatileSlice::from(memory.as_mut_slice());
    let mut segments = Segments::default();
    for _ in 0..1024 {
        segments.push(&slice).unwrap();
    }
    assert_eq!(segments.push(&slice), Err(TooMany));
    segments.clear();
    assert_eq!(segments.push(&slice), Ok(()));
}

#[test]
fn bytes_can_be_put_anywhere_and_no_further_than_the_end() {
    for offset in 0..12 {
        let mut memory = [0_u8; 10];
        segments(&mut memory, &[3, 0, 1, 6]).copy_from_at(offset, &[1, 2, 3]);
        let mut expected = [0; 10];
        for (i, byte) in (1..=3).enumerate() {
            if let Some(place) = expected.get_mut(offset + i) {
                *place = byte;
            }
        }
        assert_eq!(memory, expected, "{offset}");
    }
}

#[test]
fn what_is_finished_makes_room_and_what_was_added_can_be_taken_back() {
    let mut memory = vec![0_u8; 4 * MAX_SEGMENTS];
    let whole = VolatileSlice::from(memory.as_mut_slice());
    let mut segments = Segments::default();
    let push = |segments: &mut Segments, at| segments.push(&whole.subslice(at, 1).unwrap());
    for at in 0..MAX_SEGMENTS {
        push(&mut segments, at).unwrap();
    }
    assert_eq!(push(&mut segments, 0), Err(TooMany));
    segments.advance(10);
    for at in 0..10 {
        push(&mut segments, MAX_SEGMENTS + at).unwrap();
    }
    assert_eq!(push(&mut segments, 0), Err(TooMany));
    assert_eq!(segments.remaining().len(), MAX_SEGMENTS);
    segments.keep(MAX_SEGMENTS - 5);
    segments.advance(MAX_SEGMENTS - 6);
    let [last] = segments.remaining() else {
        panic!("{}", segments.remaining().len());
    };
    let start = whole.ptr_guard().as_ptr();
    assert_eq!(last.iov_base.addr() - start.addr(), MAX_SEGMENTS + 4);
}
