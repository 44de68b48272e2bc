//! Flags about how a tenant is kept: when it starts by itself, how much of the host it may use, what is kept of its
//! output. `fief create` and `fief run` set them, `fief set` changes them.

use crate::spec::{Bytes, Limits, RestartPolicy, Spec};

/// What of these was said.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
#[command(next_help_heading = "Policy and limits")]
pub struct PolicyArgs {
    /// Start again when it ends: no, on-failure[:N], always, unless-stopped [no]
    #[arg(long, value_name = "POLICY")]
    restart: Option<RestartPolicy>,
    /// Start it with `fief start --all`, as when the host boots
    #[arg(long, overrides_with = "no_autostart")]
    autostart: bool,
    /// Do not
    #[arg(long, overrides_with = "autostart", hide = true)]
    no_autostart: bool,
    /// Share of the processors when they are short, 1 to 10000 [100]
    #[arg(long, value_name = "N")]
    cpu_weight: Option<u16>,
    /// Share of the host's disks when they are short, 1 to 10000 [100]
    #[arg(long, value_name = "N")]
    io_weight: Option<u16>,
    /// Bytes a second from and to its disk, in a container each way; 0 for no limit [0]
    #[arg(long, value_name = "SIZE")]
    disk_rate: Option<Bytes>,
    /// Requests a second to its disk, in a container each way; 0 for no limit [0]
    #[arg(long, value_name = "N")]
    disk_ops: Option<u64>,
    /// Bytes a second in each direction of its network; 0 for no limit [0]
    #[arg(long, value_name = "SIZE")]
    net_rate: Option<Bytes>,
    /// Size of one file of its console's log [1M]
    #[arg(long, value_name = "SIZE")]
    log_size: Option<Bytes>,
    /// How many files of its console's log are kept [2]
    #[arg(long, value_name = "N")]
    log_files: Option<u8>,
}

impl PolicyArgs {
    /// Changes what was said, and nothing else.
    pub fn apply(&self, spec: &mut Spec) {
        if let Some(policy) = self.restart {
            spec.restart = policy;
        }
        if self.autostart || self.no_autostart {
            spec.autostart = self.autostart;
        }
        self.apply_limits(&mut spec.limits);
        if let Some(size) = self.log_size {
            spec.log.size = size;
        }
        if let Some(files) = self.log_files {
            spec.log.files = files;
        }
    }

    fn apply_limits(&self, limits: &mut Limits) {
        limits.cpu_weight = self.cpu_weight.or(limits.cpu_weight);
        limits.io_weight = self.io_weight.or(limits.io_weight);
        let rate = |asked: Option<Bytes>, now| match asked {
            Some(Bytes(0)) => None,
            Some(rate) => Some(rate),
            None => now,
        };
        limits.disk_rate = rate(self.disk_rate, limits.disk_rate);
        limits.net_rate = rate(self.net_rate, limits.net_rate);
        limits.disk_ops = match self.disk_ops {
            Some(0) => None,
            Some(rate) => Some(rate),
            None => limits.disk_ops,
        };
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::spec::tests::spec;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        policy: PolicyArgs,
    }

    fn applied(line: &str, mut spec: Spec) -> Spec {
        let words = std::iter::once("x").chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().policy.apply(&mut spec);
        spec
    }

    #[test]
    fn what_is_not_said_stays_as_it_is() {
        let before = applied(
            "--restart on-failure:2 --autostart --cpu-weight 50 --disk-rate 1M --disk-ops 7 --log-files 5",
            spec(),
        );
        assert_eq!(before.restart, RestartPolicy::OnFailure(Some(2)));
        assert!(before.autostart);
        assert_eq!(applied("", before.clone()), before);
        let after = applied("--io-weight 9", before.clone());
        assert_eq!(after.limits.io_weight, Some(9));
        assert_eq!(after.limits.cpu_weight, Some(50));
    }

    #[test]
    fn a_rate_of_0_takes_the_limit_away_and_no_autostart_the_mark() {
        let before = applied(
            "--autostart --disk-rate 1M --disk-ops 7 --net-rate 1M",
            spec(),
        );
        let after = applied(
            "--no-autostart --disk-rate 0 --disk-ops 0 --net-rate 0",
            before,
        );
        assert_eq!(after, spec());
    }
}
