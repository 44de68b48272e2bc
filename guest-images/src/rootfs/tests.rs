use std::fs;
use std::io::Write;

use super::*;
use crate::progress::Silent;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

fn sample(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    fs::create_dir_all(root.join("usr/sbin")).unwrap();
    fs::write(root.join("usr/sbin/init"), "#!").unwrap();
    fs::write(root.join("big"), vec![b'b'; 300_000]).unwrap();
    root
}

fn tar_of(root: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", root).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn a_directory_becomes_an_erofs_image_with_its_init_found() {
    let (dir, store) = store();
    let image = import(&store, "mine", &sample(dir.path()), &Silent).unwrap();
    assert_eq!(
        (image.format, image.init.as_deref()),
        (ImageFormat::Erofs, Some("/usr/sbin/init"))
    );
    assert_eq!(ImageFormat::of(&image.path).unwrap(), ImageFormat::Erofs);
    assert!(image.size > 300_000);
}

#[test]
fn a_tar_gives_the_same_image_packed_or_not() {
    let (dir, store) = store();
    let tar = tar_of(&sample(dir.path()));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&tar).unwrap();
    let mut xz = Vec::new();
    lzma_rs::xz_compress(&mut &tar[..], &mut xz).unwrap();
    let zst =
        ruzstd::encoding::compress_to_vec(&tar[..], ruzstd::encoding::CompressionLevel::Fastest);
    let mut ids = Vec::new();
    for (name, bytes) in [
        ("plain", tar.clone()),
        ("gz", gz.finish().unwrap()),
        ("xz", xz),
        ("zst", zst),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        ids.push(import(&store, name, &path, &Silent).unwrap().artifact);
    }
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[test]
fn an_image_file_is_taken_as_it_is_and_a_truncated_one_is_refused() {
    let (dir, store) = store();
    let made = import(&store, "mine", &sample(dir.path()), &Silent).unwrap();
    let copy = import(&store, "copy", &made.path, &Silent).unwrap();
    assert_eq!(fs::read(&copy.path).unwrap(), fs::read(&made.path).unwrap());
    let cut = dir.path().join("cut");
    let bytes = fs::read(&made.path).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 4096]).unwrap();
    let message = import(&store, "cut", &cut, &Silent)
        .unwrap_err()
        .to_string();
    assert!(message.contains("truncated"), "{message}");
    assert!(find(&store, "cut").unwrap().is_none());
}

#[test]
fn importing_again_replaces_what_the_name_meant() {
    let (dir, store) = store();
    let root = sample(dir.path());
    let first = import(&store, "mine", &root, &Silent).unwrap();
    fs::write(root.join("more"), "x").unwrap();
    let second = import(&store, "mine", &root, &Silent).unwrap();
    assert_ne!(first.artifact, second.artifact);
    assert_eq!(get(&store, "mine").unwrap().artifact, second.artifact);
}

#[test]
fn an_empty_directory_or_tar_makes_no_image() {
    let (dir, store) = store();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(matches!(
        import(&store, "a", &empty, &Silent),
        Err(Error::Empty { .. })
    ));
    let tar = dir.path().join("empty.tar");
    fs::write(&tar, [0; 1024]).unwrap();
    assert!(matches!(
        import(&store, "b", &tar, &Silent),
        Err(Error::Empty { .. })
    ));
}

#[test]
fn an_unknown_image_lists_those_there_are_and_says_how_to_make_one() {
    let (dir, store) = store();
    import(&store, "mine", &sample(dir.path()), &Silent).unwrap();
    for result in [get(&store, "nope"), ensure(&store, "nope", &Silent)] {
        let message = result.unwrap_err().to_string();
        for part in ["`nope`", "mine", "debian, busybox", "fief setup"] {
            assert!(message.contains(part), "{message}");
        }
    }
    assert!(get(&store, "../x").is_err());
}

#[test]
fn the_names_of_fiefs_own_images_cannot_be_taken() {
    let (dir, store) = store();
    let root = sample(dir.path());
    assert!(matches!(
        import(&store, "debian", &root, &Silent),
        Err(Error::Reserved(_))
    ));
    assert!(import(&store, "../x", &root, &Silent).is_err());
}

#[test]
fn an_archive_that_unpacks_to_far_more_than_any_real_one_is_refused() {
    let (dir, store) = store();
    let path = dir.path().join("bomb.tar.gz");
    let mut encoder = flate2::write::GzEncoder::new(
        fs::File::create(&path).unwrap(),
        flate2::Compression::best(),
    );
    let zeros = vec![0; 1 << 20];
    for _ in 0..150 {
        encoder.write_all(&zeros).unwrap();
    }
    encoder.finish().unwrap();
    assert!(import(&store, "bomb", &path, &Silent).is_err());
    assert!(find(&store, "bomb").unwrap().is_none());
}

#[test]
fn the_busybox_image_has_a_shell_users_and_mount_points() {
    let (_dir, store) = store();
    let image = ensure(&store, "busybox", &Silent).unwrap();
    assert_eq!(image.init, None);
    let again = ensure(&store, "busybox", &Silent).unwrap();
    assert_eq!(again.artifact, image.artifact);
    let bytes = fs::read(&image.path).unwrap();
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(has(b"user:x:1000:1000:") && has(b"/bin/busybox"));
}
