//! The `process_*` metrics: what Prometheus clients tell of their own process.

use std::fs;

/// What `/proc/self` says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessStats {
    /// User and system time, seconds.
    pub cpu_seconds: f64,
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// Virtual memory, bytes.
    pub virtual_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// How many may be open.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
    /// When it started, seconds since 1970.
    pub start_seconds: f64,
}

/// Ticks per second of the times in `/proc`: fixed by the Linux ABI on every architecture in use.
const TICKS: f64 = 100.0;

impl ProcessStats {
    /// Reads them; what cannot be read is 0.
    #[must_use]
    pub fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let mut stats = parse(&stat, &boot, &limits);
        // Reading the directory opens one more.
        stats.open_fds =
            fs::read_dir("/proc/self/fd").map_or(0, |dir| (dir.count() as u64).saturating_sub(1));
        stats
    }
}

fn parse(stat: &str, boot: &str, limits: &str) -> ProcessStats {
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect());
    // Numbered as in proc_pid_stat(5), where the state is field 3.
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let boot_seconds: u64 = boot
        .lines()
        .find_map(|line| line.strip_prefix("btime "))
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    let max_fds = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    ProcessStats {
        cpu_seconds: (field(14) + field(15)) as f64 / TICKS,
        resident_bytes: field(24) * rustix::param::page_size() as u64,
        virtual_bytes: field(23),
        open_fds: 0,
        max_fds,
        threads: field(20),
        start_seconds: boot_seconds as f64 + field(22) as f64 / TICKS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 0 1 2 3 4 150 50 0 0 20 0 5 0 1000 4096 2 0\n";
        let stats = parse(stat, "cpu 1\nbtime 1000\n", "Max open files            1024   4096   files\n");
        assert_eq!((stats.cpu_seconds, stats.threads, stats.virtual_bytes), (2.0, 5, 4_096));
        assert_eq!((stats.start_seconds, stats.max_fds), (1_010.0, 1_024));
    }

    #[test]
    fn this_process_has_memory() {
        let stats = ProcessStats::read();
        assert!(stats.resident_bytes > 0 && stats.open_fds > 0 && stats.start_seconds > 0.0);
    }
}
