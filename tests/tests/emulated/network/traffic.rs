//! Much that passes: packages, half a minute at full speed, a gibibyte with and without offloads (less to and from containers).

use super::*;

/// A Debian that got iperf3 as its people would: by apt, over the network, as a user who may sudo.
fn with_iperf3(backend: Backend) -> Tenant {
    static REPOSITORY: OnceLock<()> = OnceLock::new();
    world();
    REPOSITORY.get_or_init(|| {
        in_host(&format!(
            "cat > /tmp/repository.sh <<'END'\n{}\nEND\nip netns exec outside sh /tmp/repository.sh {OUTSIDE}",
            include_str!("repository.sh")
        ))
        .ok();
    });
    let tenant = backend.start("net-packages", "--image debian --memory 384M");
    let sources = format!("deb [trusted=yes] http://{OUTSIDE}:8080 ./");
    tenant
        .sh(&format!(
            "echo '{sources}' > /etc/apt/sources.list; rm -f /etc/apt/sources.list.d/*"
        ))
        .ok();
    let install = "sudo apt-get -q update && sudo apt-get -q -y install fief-iperf3";
    run_with("exec -u user net-packages -- sh -ec", install).ok();
    tenant
}

both!(packages_come_from_the_world_and_traffic_passes_both_ways_all_the_time);
fn packages_come_from_the_world_and_traffic_passes_both_ways_all_the_time(backend: Backend) {
    let tenant = with_iperf3(backend);
    in_host("ip netns exec outside iperf3 -s -D -I /tmp/iperf3.pid").ok();
    // A container's packets go through nothing of fief's own.
    let seconds = backend.either(30, 10);
    let interval = seconds / 5;
    for way in ["", "-R"] {
        let said = tenant
            .sh(&format!(
                "fief-iperf3 -c {OUTSIDE} -t {seconds} -i {interval} -J {way}"
            ))
            .ok();
        let result = json(&said);
        let received = result["end"]["sum_received"]["bytes"].as_u64();
        println!("{way:2} in {seconds} s: {received:?} bytes");
        let intervals = result["intervals"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        assert!(intervals.len() >= 5, "{said}");
        for interval in intervals {
            let bytes = interval["sum"]["bytes"].as_u64();
            assert!(bytes > Some(0), "nothing passed for {interval} s: {said}");
        }
        assert!(received > Some(0), "{said}");
    }
    in_host("kill $(tr -d '\\0' < /tmp/iperf3.pid)").ok();
}

both!(what_is_sent_arrives_with_segmentation_offloads_and_without);
fn what_is_sent_arrives_with_segmentation_offloads_and_without(backend: Backend) {
    let both = neighbours(backend);
    // Without them every packet of 1,500 bytes is one of the device's own: a quarter takes as long as the whole with them.
    for (offload, bytes) in [("on", 1_u64 << 30), ("off", 1 << 28)] {
        let bytes = bytes / backend.either(1, 4);
        both.alice.probe(&format!("gso eth0 {offload}")).ok();
        let log = format!("/tmp/received-{offload}");
        in_host(&format!("rm -f {log}")).ok();
        outside_probe(&format!(
            "receive 5200 --sha256 --timeout 550 --background --log {log}"
        ))
        .ok();
        let sent = both
            .alice
            .probe(&format!(
                "send {OUTSIDE} 5200 {bytes} --sha256 --timeout 550"
            ))
            .ok();
        let hash = |said: &str| {
            let words: Vec<_> = said.split_whitespace().collect();
            let at = words
                .iter()
                .position(|word| *word == "sha256")
                .unwrap_or_else(|| panic!("no hash in {said}"));
            words[at + 1].to_owned()
        };
        // It says so after it has told the sender.
        let received = waiting::until("the receiver's last word", || {
            let said = in_host(&format!("cat {log}")).ok();
            said.contains("sha256").then_some(said)
        });
        assert_eq!(hash(&sent), hash(&received), "{sent}\n{received}");
        println!("offloads {offload}: {sent}");
    }
    both.alice.probe("gso eth0 on").ok();
}
