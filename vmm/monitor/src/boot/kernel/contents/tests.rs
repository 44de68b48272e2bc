use super::*;

const K: u64 = 1 << 10;

#[test]
fn only_large_gaps_inside_a_segment_are_left_out() {
    let contents = Contents(vec![(100 * K, 200 * K), (500 * K, 600 * K)]);
    assert_eq!(
        contents.pieces(90 * K, 520 * K),
        [(90 * K, 110 * K), (500 * K, 110 * K)],
        "what is before and behind the sections is read along"
    );
    assert_eq!(
        contents.pieces(0, 1000 * K),
        [(100 * K, 100 * K), (500 * K, 100 * K)]
    );
    assert_eq!(contents.pieces(150 * K, 10 * K), [(150 * K, 10 * K)]);
}

#[test]
fn a_segment_without_sections_is_read_whole() {
    assert_eq!(Contents::default().pieces(5, 7), [(5, 7)]);
    let contents = Contents(vec![(100 * K, 200 * K)]);
    assert_eq!(contents.pieces(300 * K, 9 * K), [(300 * K, 9 * K)]);
    assert_eq!(contents.pieces(u64::MAX, u64::MAX), [(u64::MAX, u64::MAX)]);
}
