pub fn probe() -> String {
    String::new()
}
