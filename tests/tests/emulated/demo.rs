//! `fief demo`: it checks what it shows, and fails where something is not as it tells.

use fief_tests::run;

#[test]
fn the_demo_shows_a_machine_beside_a_container_and_leaves_neither() {
    let shown = run("demo").ok();
    for words in ["kernel panic   powered off", "All of it worked"] {
        assert!(shown.contains(words), "no '{words}' in: {shown}");
    }
    assert!(!run("ps -a").ok().contains("demo-"));
}
