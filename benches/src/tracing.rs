//! What tasks do in this machine's kernel, by its tracer (Documentation/trace/ftrace.rst).

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::error::{Error, Result, on};

/// Where the tracer is (`mount -t tracefs`).
pub const TRACER: &str = "/sys/kernel/tracing";
/// Room for what is recorded, in KiB, of all processors together, and the least of one.
const ROOM: usize = 128 << 10;
const LEAST: usize = 4 << 10;
/// Where a page of records begins: after its time and its length.
const HEADER: usize = 16;
/// The bits of that length that are one; the others tell of losses (`ring_buffer.c`, `RB_MISSED_EVENTS`).
const LENGTH: u64 = (1 << 27) - 1;
/// In an interrupt, or one that cannot be masked, that has nothing to do with the task (`trace_flag_type`).
const INTERRUPT: u8 = 0x08 | 0x40;

/// One field of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The event's number.
    event: u16,
    /// In bytes from the record's begin.
    offset: usize,
    /// In bytes, at most 8.
    size: usize,
}

/// A buffer of the tracer's own. It is gone, with all that it traced, when this goes.
#[derive(Debug)]
pub struct Tracer {
    directory: PathBuf,
}

/// Mounts the tracer's files where they are not.
///
/// # Errors
/// This kernel has no tracer, or no permission.
pub fn make_ready() -> Result<()> {
    let place = Path::new(TRACER);
    if !place.join("instances").exists() {
        let none = None::<&str>;
        let mounted = mount(
            Some("tracefs"),
            place,
            Some("tracefs"),
            MsFlags::empty(),
            none,
        );
        mounted.map_err(|errno| Error::NoTracer {
            what: "tracefs cannot be mounted",
            source: errno.into(),
        })?;
    }
    Ok(())
}

/// How many system calls this kernel has.
///
/// # Errors
/// It does not tell.
pub fn system_calls() -> Result<usize> {
    let events = Path::new(TRACER).join("events/syscalls");
    let names = fs::read_dir(&events).map_err(on("read", &events))?;
    let names = names.flatten().map(|one| one.file_name());
    let calls = names.filter(|name| name.to_string_lossy().starts_with("sys_enter_"));
    Ok(calls.count())
}

impl Tracer {
    /// One that traces nothing yet; what a killed measurement left of that name is gone.
    ///
    /// # Errors
    /// The kernel has no tracer, or no room.
    pub fn make(name: &str) -> Result<Self> {
        let directory = Path::new(TRACER).join("instances").join(name);
        let made = Self { directory };
        made.remove();
        fs::create_dir(&made.directory).map_err(on("make", &made.directory))?;
        made.set("tracing_on", "0")?;
        // What does not fit is counted, and nothing older is lost for it.
        made.set("options/overwrite", "0")?;
        let each = (ROOM / made.processors()?.len().max(1)).max(LEAST);
        made.set("buffer_size_kb", &each.to_string())?;
        Ok(made)
    }

    /// Has events of these tasks, and of what they will start, recorded.
    ///
    /// # Errors
    /// One of them has ended, or the kernel has no such event.
    pub fn events(&self, tasks: &[i32], events: &[&str]) -> Result<()> {
        self.set("options/event-fork", "1")?;
        self.set("set_event_pid", &words(tasks))?;
        for event in events {
            self.set(&format!("events/{event}/enable"), "1")?;
        }
        Ok(())
    }

    /// Has every function of the kernel that these tasks, and what they will start, call recorded.
    ///
    /// # Errors
    /// One of them has ended, or the kernel has no function tracer (CONFIG_FUNCTION_TRACER).
    pub fn functions(&self, tasks: &[i32]) -> Result<()> {
        self.set("options/function-fork", "1")?;
        self.set("set_ftrace_pid", &words(tasks))?;
        self.set("current_tracer", "function")
    }

    /// # Errors
    /// The kernel refuses.
    pub fn begin(&self) -> Result<()> {
        self.set("tracing_on", "1")
    }

    /// # Errors
    /// The kernel refuses.
    pub fn end(&self) -> Result<()> {
        self.set("tracing_on", "0")
    }

    /// Whether this kernel has an event.
    pub fn has(&self, event: &str) -> bool {
        self.directory.join("events").join(event).exists()
    }

    /// # Errors
    /// There is no such event, or no such field of a number.
    pub fn field(&self, event: &str, name: &str) -> Result<Field> {
        let path = self.directory.join(format!("events/{event}/format"));
        let text = fs::read_to_string(&path).map_err(on("read", &path))?;
        field(&text, name)
            .ok_or_else(|| Error::Other(format!("{} tells of no number {name}", path.display())))
    }

    /// The different values that each of these fields had, outside of interrupts.
    ///
    /// # Errors
    /// Not all was recorded.
    pub fn distinct(&self, fields: &[Field]) -> Result<Vec<BTreeSet<u64>>> {
        let mut found = vec![BTreeSet::new(); fields.len()];
        for processor in self.processors()? {
            let stats = processor.join("stats");
            let text = fs::read_to_string(&stats).map_err(on("read", &stats))?;
            let lost = lost(&text);
            if lost > 0 {
                return Err(Error::Other(format!(
                    "the tracer lost {lost} records, so that what it kept is not all; measure while less is done on this machine"
                )));
            }
            let path = processor.join("trace_pipe_raw");
            let mut options = OpenOptions::new();
            let options = options.read(true).custom_flags(libc::O_NONBLOCK);
            let mut pipe = options.open(&path).map_err(on("open", &path))?;
            let mut page = vec![0; 64 << 10];
            loop {
                match pipe.read(&mut page) {
                    Ok(0) => break,
                    Ok(length) => {
                        let page = page.get(..length).unwrap_or_default();
                        records(page, |record| take(record, fields, &mut found));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(on("read", &path)(error)),
                }
            }
        }
        Ok(found)
    }

    fn processors(&self) -> Result<Vec<PathBuf>> {
        let directory = self.directory.join("per_cpu");
        let all = fs::read_dir(&directory).map_err(on("read", &directory))?;
        Ok(all.flatten().map(|one| one.path()).collect())
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.directory.join(file);
        // O_TRUNC empties the lists of tasks.
        let written = File::create(&path).and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(on("write to", &path))
    }

    fn remove(&self) {
        if self.directory.exists() {
            let _ = self.end();
            let _ = self.set("current_tracer", "nop");
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.remove();
    }
}

fn words(tasks: &[i32]) -> String {
    let words: Vec<_> = tasks.iter().map(i32::to_string).collect();
    words.join(" ")
}

/// A field of an event, from its `format`.
fn field(text: &str, name: &str) -> Option<Field> {
    let event = text.lines().find_map(|line| line.strip_prefix("ID: "))?;
    let line = text.lines().find(|line| {
        let declared = line.trim().strip_prefix("field:");
        let declared = declared.and_then(|line| line.split(';').next());
        declared.is_some_and(|one| one.split_whitespace().next_back() == Some(name))
    })?;
    let value = |key: &str| {
        let part = line.split(';').find_map(|one| one.trim().strip_prefix(key));
        part?.parse::<usize>().ok()
    };
    let (offset, size) = (value("offset:")?, value("size:")?);
    let event = event.trim().parse().ok()?;
    (1..=8).contains(&size).then_some(Field {
        event,
        offset,
        size,
    })
}

/// Records that are in no buffer, from a processor's `stats`.
fn lost(text: &str) -> u64 {
    let counted = text.lines().filter_map(|line| line.split_once(':'));
    let counted = counted
        .filter(|(name, _)| matches!(*name, "overrun" | "commit overrun" | "dropped events"));
    counted
        .filter_map(|(_, number)| number.trim().parse::<u64>().ok())
        .sum()
}

/// Each record of a page of the ring buffer (`events/header_page`, `events/header_event`).
fn records(page: &[u8], mut each: impl FnMut(&[u8])) {
    let length = number(page, 8, 8).unwrap_or(0) & LENGTH;
    let end = usize::try_from(length).unwrap_or(0).saturating_add(HEADER);
    let page = page.get(..end.min(page.len())).unwrap_or_default();
    let mut at = HEADER;
    while let Some(header) = number(page, at, 4) {
        let word = || usize::try_from(number(page, at + 4, 4)?).ok();
        let (from, to) = match (header & 31, header >> 5) {
            // The rest of the page.
            (29, 0) => return,
            // A record that was given up.
            (29, _) => (0, word().map_or(usize::MAX, |length| at + 4 + length)),
            // A time.
            (30 | 31, _) => (0, at + 8),
            (0, _) => (at + 8, word().map_or(usize::MAX, |length| at + 4 + length)),
            (words, _) => (at + 4, at + 4 + usize::try_from(words).unwrap_or(0) * 4),
        };
        if from > 0 {
            each(page.get(from..to).unwrap_or_default());
        }
        // Whatever is written there, it goes on.
        at = to.max(at + 4);
    }
}

fn take(record: &[u8], fields: &[Field], found: &mut [BTreeSet<u64>]) {
    let (Some(event), Some(flags)) = (number(record, 0, 2), record.get(2)) else {
        return;
    };
    if flags & INTERRUPT != 0 {
        return;
    }
    for (field, found) in fields.iter().zip(found) {
        if u64::from(field.event) == event {
            found.extend(number(record, field.offset, field.size));
        }
    }
}

/// The number of so many bytes, at most 8, that begins there.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    let mut number = [0; 8];
    number.get_mut(..size)?.copy_from_slice(bytes);
    Some(u64::from_ne_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "\
name: io_uring_submit_req
ID: 1337
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:u8 opcode;\toffset:32;\tsize:1;\tsigned:0;
\tfield:char op_str[16];\toffset:40;\tsize:16;\tsigned:0;

print fmt: \"opcode %d\", REC->opcode
";

    fn header(type_len: u32, delta: u32) -> [u8; 4] {
        (type_len | delta << 5).to_ne_bytes()
    }

    /// A record of 16 bytes: an event, flags, a value.
    fn record(event: u16, flags: u8, value: u64) -> Vec<u8> {
        let mut all = event.to_ne_bytes().to_vec();
        all.extend([flags, 0, 1, 0, 0, 0]);
        all.extend(value.to_ne_bytes());
        all
    }

    fn page(records: &[u8]) -> Vec<u8> {
        let mut page = vec![0; 8];
        // With the bit that tells of losses.
        page.extend((records.len() as u64 | 1 << 31).to_ne_bytes());
        page.extend(records);
        page.resize(4096, 0xff);
        page
    }

    #[test]
    fn a_field_is_where_the_kernel_says() {
        let opcode = Field {
            event: 1337,
            offset: 32,
            size: 1,
        };
        assert_eq!(field(FORMAT, "opcode"), Some(opcode));
        // Text is no number.
        assert_eq!(field(FORMAT, "op_str[16]"), None);
        assert_eq!(field(FORMAT, "nothing"), None);
    }

    #[test]
    fn all_records_of_a_page_are_found_and_nothing_else() {
        let mut all = Vec::new();
        all.extend(header(4, 9));
        all.extend(record(7, 0, 100));
        all.extend(header(30, 5));
        all.extend([0; 4]);
        // A length of its own, which is counted in it.
        all.extend(header(0, 1));
        all.extend(20u32.to_ne_bytes());
        all.extend(record(7, 0x10, 200));
        all.extend(header(29, 1));
        all.extend(12u32.to_ne_bytes());
        all.extend([0; 8]);
        all.extend([header(4, 1).to_vec(), record(7, 0x08, 300)].concat());
        all.extend([header(4, 1).to_vec(), record(8, 0, 400)].concat());
        all.extend([header(4, 1).to_vec(), record(7, 0, 100)].concat());
        all.extend(header(29, 0));
        all.extend([header(4, 1).to_vec(), record(7, 0, 500)].concat());
        let fields = [7, 8].map(|event| Field {
            event,
            offset: 8,
            size: 8,
        });
        let mut found = vec![BTreeSet::new(); 2];
        records(&page(&all), |record| take(record, &fields, &mut found));
        // Not that of an interrupt.
        assert_eq!(found, [BTreeSet::from([100, 200]), BTreeSet::from([400])]);
    }

    #[test]
    fn a_page_that_makes_no_sense_ends() {
        for word in [0, 1, 28, 29 | 1 << 5, 30, 31, u32::MAX] {
            let all = word.to_ne_bytes().repeat(1000);
            let mut most = 0;
            records(&page(&all), |_| most += 1);
            assert!(most <= 1000);
        }
        records(&[0; 3], |_| panic!("a record of nothing"));
    }

    #[test]
    fn what_is_lost_is_counted() {
        let stats = "entries: 5\noverrun: 2\ncommit overrun: 0\nbytes: 9\ndropped events: 3\nread events: 7\n";
        assert_eq!(lost(stats), 5);
        assert_eq!(lost("entries: 5\noverrun: 0\n"), 0);
    }
}
