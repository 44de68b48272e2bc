//! The balloon: memory that the guest gives back to the host.

use serde::{Deserialize, Serialize};

fn is_false(value: &bool) -> bool {
    !value
}

/// `/balloon`: a virtio-balloon device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// MiB that the guest is to give.
    pub amount_mib: u64,
    /// The guest may take back what it gave rather than run out of memory.
    pub deflate_on_oom: bool,
    /// Seconds between statistics of the guest's memory; 0: no statistics, unless `stats_on_demand`.
    #[serde(default)]
    pub stats_polling_interval_s: u64,
    /// Not supported.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// The guest reports free pages, which then are the host's until it uses them again.
    #[serde(default)]
    pub free_page_reporting: bool,
    /// Ours: statistics without an interval; each `GET /balloon/statistics` asks the guest.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stats_on_demand: bool,
}

impl Balloon {
    /// The guest can be asked for statistics.
    pub fn has_statistics(&self) -> bool {
        self.stats_polling_interval_s > 0 || self.stats_on_demand
    }
}

/// `PATCH /balloon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// MiB that the guest is to give from now on.
    pub amount_mib: u64,
}

/// `PATCH /balloon/statistics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// Seconds between statistics.
    pub stats_polling_interval_s: u64,
}

/// `GET /balloon/statistics`: what the balloon holds, and what the guest last said of its memory. A figure that it did not
/// say is left out; those that it did may be lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStats {
    /// Pages of 4 KiB that the guest is to give.
    pub target_pages: u64,
    /// Pages of 4 KiB that it says it has given.
    pub actual_pages: u64,
    pub target_mib: u64,
    pub actual_mib: u64,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Bytes that nothing uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// Bytes that the guest has, without those of the balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Bytes that new programs could have without swapping. What the guest uses is `total_memory` without these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Bytes of file caches that can be had back at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Programs that the guest killed for want of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
}
