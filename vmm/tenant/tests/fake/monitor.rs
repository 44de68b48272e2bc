//! A monitor without a machine, for the shim's tests: it takes the same flags and the same API as `fief-vmm`, and does
//! what the file given as its kernel says.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let flag = |name: &str| {
        words
            .windows(2)
            .find(|pair| pair[0] == name)
            .map(|pair| pair[1].clone())
            .unwrap()
    };
    let listener = UnixListener::bind(flag("--api-sock")).unwrap();
    let mut events = OpenOptions::new()
        .append(true)
        .open(flag("--event-path"))
        .unwrap();
    let mut script = String::new();
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        let (request, body) = read(&stream);
        let answer = |status: &str, body: &str| {
            // The client may not wait for the answer.
            let _ = write!(
                &stream,
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        };
        if request == "PUT /boot-source" {
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            script = fs::read_to_string(body["kernel_image_path"].as_str().unwrap()).unwrap();
        }
        match (request.as_str(), script.as_str()) {
            ("GET /", _) => {
                answer(
                    "200 OK",
                    r#"{"app_name":"fake","id":"x","state":"Not started","vmm_version":"0"}"#,
                );
                continue;
            }
            ("GET /refused", _) => {
                answer("400 Bad Request", r#"{"fault_message":"no such path"}"#);
                continue;
            }
            ("PUT /actions", "refuse") => {
                answer(
                    "400 Bad Request",
                    r#"{"fault_message":"the kernel is none; give another"}"#,
                );
                continue;
            }
            ("PUT /actions", "die") => {
                eprintln!("fake: cannot open /dev/kvm: no such device");
                std::process::exit(1);
            }
            _ => answer("204 No Content", ""),
        }
        // The client reads until the connection is closed.
        drop(stream);
        if request == "PUT /actions" && body.contains("InstanceStart") {
            run(&script, &mut events);
        }
    }
}

fn run(script: &str, events: &mut fs::File) {
    println!("hello from the console");
    let end = |events: &mut fs::File, reason: &str| {
        writeln!(
            events,
            "{}",
            serde_json::json!({"event": "exit", "reason": reason, "exit_code": 0})
        )
        .unwrap();
        std::process::exit(0);
    };
    match script {
        "poweroff" | "panic" | "triple-fault" => end(events, script),
        "reboot" => {
            for _ in 0..2 {
                writeln!(events, "{}", serde_json::json!({"event": "reboot"})).unwrap();
            }
        }
        "flood" => {
            let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
            for _ in 0..5 << 10 {
                std::io::stdout().write_all(&line).unwrap();
            }
            println!("the last line");
            end(events, "poweroff");
        }
        "stubborn" => {
            // As if the kernel had not ended it yet when its shim is gone.
            nix::sys::prctl::set_pdeathsig(None).unwrap();
        }
        _ => {}
    }
}

fn read(stream: &UnixStream) -> (String, String) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let request = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (request, String::from_utf8(body).unwrap())
}
