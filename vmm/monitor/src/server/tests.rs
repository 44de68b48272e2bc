#[allow(dead_code)]
fn nothing() {}
