//! Makes and shows artifacts in a store, without the command line around it.
//!
//! `cargo run -p fief-images --example images -- STORE COMMAND...`, commands: `kernel KIND`, `rootfs NAME`,
//! `import NAME PATH`, `initramfs KIND AGENT tenant|host|none [busybox]`, `list`, `verify`, `remove KIND NAME`.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use fief_images::{Images, InitramfsSpec, Kind, Progress, Unit, modules};

/// Prints a step when it begins, and every 64th of it.
#[derive(Default)]
struct Lines(Mutex<(u64, u64)>);

impl Progress for Lines {
    fn begin(&self, title: &str, unit: Unit, total: Option<u64>) {
        *self.0.lock().unwrap() = (total.unwrap_or(0), 0);
        eprintln!("{title} ({total:?} {unit:?})");
    }

    fn done(&self, done: u64) {
        let mut state = self.0.lock().unwrap();
        if let Some(part) = (done * 64).checked_div(state.0)
            && part > state.1
        {
            state.1 = part;
            eprint!(".");
        }
        let _ = std::io::stderr().flush();
    }

    fn end(&self) {
        eprintln!();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [store, command @ ..] = words.as_slice() else {
        return Err("usage: STORE COMMAND...".into());
    };
    let progress = Lines::default();
    let images = Images::open(Path::new(store))?;
    let start = Instant::now();
    match command {
        ["kernel", kind] => println!("{:#?}", images.ensure_kernel(kind.parse()?, &progress)?),
        ["rootfs", name] => println!("{:#?}", images.ensure_rootfs(name, &progress)?),
        ["import", name, path] => println!(
            "{:#?}",
            images.import_rootfs(name, Path::new(path), &progress)?
        ),
        ["initramfs", kind, agent, list, rest @ ..] => {
            let (list, later) = match *list {
                "tenant" => (modules::TENANT, modules::TENANT_LATER),
                "host" => (modules::HOST, &[][..]),
                _ => (&[][..], &[][..]),
            };
            let spec = InitramfsSpec {
                kernel: images.kernel(kind.parse()?)?,
                agent: agent.into(),
                modules: list.iter().map(|&name| name.to_owned()).collect(),
                later: later.iter().map(|&name| name.to_owned()).collect(),
                busybox: rest == ["busybox"],
            };
            println!("{:#?}", images.ensure_initramfs(&spec, &progress)?);
        }
        ["list"] => images
            .list()?
            .iter()
            .for_each(|listed| println!("{listed:?}")),
        ["verify"] => println!("{:#?}", images.verify(&progress)?),
        ["remove", kind, name] => {
            let kind = Kind::ALL
                .into_iter()
                .find(|k| k.to_string() == *kind)
                .ok_or("no such kind")?;
            images.remove(kind, name, &[])?;
        }
        _ => return Err("unknown command".into()),
    }
    eprintln!("{:?}", start.elapsed());
    Ok(())
}
