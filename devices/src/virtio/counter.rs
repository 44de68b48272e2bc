//! What a device counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number of things or bytes since the device was made. Its worker adds, anybody reads.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Adds events that the log should know of, and hands the new total to `say` when its highest bit has changed: for
    /// the 1st, 2nd, 4th, 8th … event. A guest cannot fill the log.
    pub fn tell(&self, count: u64, say: impl FnOnce(u64)) {
        let before = self.0.fetch_add(count, Ordering::Relaxed);
        let total = before.wrapping_add(count);
        if total.leading_zeros() != before.leading_zeros() {
            say(total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_hears_of_every_doubling_however_many_come_at_once() {
        let told = |steps: &[u64]| {
            let counter = Counter::default();
            let mut told = Vec::new();
            for &step in steps {
                counter.tell(step, |total| told.push(total));
            }
            assert_eq!(counter.get(), steps.iter().sum::<u64>());
            told
        };
        assert_eq!(told(&[1; 9]), [1, 2, 4, 8]);
        assert_eq!(told(&[3, 3, 1, 1, 5, 100]), [3, 6, 8, 113]);
        assert_eq!(told(&[0]), [0; 0]);
    }
}
