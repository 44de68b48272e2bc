use super::*;

fn open_fails(path: &Path) -> String {
    Host::open(&Files::new(), path)
        .err()
        .expect("must fail")
        .to_string()
}

#[test]
fn a_missing_device_is_named_with_what_to_do() {
    let message = open_fails(Path::new("/nonexistent/kvm"));
    assert!(
        message.contains("/nonexistent/kvm does not exist"),
        "{message}"
    );
    assert!(message.contains("load the kernel module"), "{message}");
}

#[test]
fn a_file_that_is_not_kvm_is_refused_by_its_api_version() {
    let message = open_fails(Path::new("/dev/null"));
    assert!(message.contains("/dev/null is not KVM"), "{message}");
}

#[test]
fn a_refused_open_says_who_may() {
    let error = open_error(
        Path::new("/dev/kvm"),
        std::io::Error::from_raw_os_error(libc::EACCES),
    );
    assert!(error.to_string().contains("group that owns it"), "{error}");
}
