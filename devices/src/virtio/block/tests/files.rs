//! What can be a drive and what cannot.

use super::*;

fn make(file: File, read_only: bool) -> Result<Block, BlockError> {
    let mut config = config(EngineKind::Sync);
    config.read_only = read_only;
    Block::new(file, config)
}

#[test]
fn bytes_after_the_last_whole_sector_are_left_out() {
    for (bytes, sectors) in [(512, 1), (513, 1), (1023, 1), (1_000_000, 1953)] {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let block = make(open(&file, false, false), false).unwrap();
        assert_eq!(block.geometry.sectors, sectors);
    }
}

#[test]
fn a_file_of_less_than_a_sector_is_refused() {
    for bytes in [0, 1, 511] {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let error = make(open(&file, false, false), false).err().unwrap();
        assert!(
            matches!(error, BlockError::Backing(BackingError::TooSmall { .. })),
            "{error}"
        );
    }
}

#[test]
fn directories_and_devices_that_hold_no_data_are_refused() {
    let directory = File::open(std::env::temp_dir()).unwrap();
    for file in [directory, File::open("/dev/null").unwrap()] {
        let error = make(file, true).err().unwrap();
        assert!(
            matches!(error, BlockError::Backing(BackingError::Kind)),
            "{error}"
        );
    }
}

#[test]
fn a_writable_drive_needs_a_file_open_for_writing() {
    let file = patterned(8);
    let error = make(open(&file, true, false), false).err().unwrap();
    assert!(
        matches!(error, BlockError::Backing(BackingError::ReadOnlyFile)),
        "{error}"
    );
    assert!(make(open(&file, true, false), true).is_ok());
    assert!(make(open(&file, false, false), true).is_ok());
}

#[test]
fn a_drive_has_one_to_thirty_two_queues() {
    let file = patterned(8);
    for (queues, good) in [
        (0, false),
        (1, true),
        (32, true),
        (33, false),
        (u16::MAX, false),
    ] {
        let mut config = config(EngineKind::Sync);
        config.queues = queues;
        let result = Block::new(open(&file, false, false), config);
        assert_eq!(result.is_ok(), good, "{queues} queues");
    }
}

#[test]
fn looking_at_a_file_changes_nothing_in_it() {
    let file = patterned(9);
    let before = std::fs::read(file.path()).unwrap();
    make(open(&file, false, false), false).unwrap();
    assert_eq!(std::fs::read(file.path()).unwrap(), before);
}
