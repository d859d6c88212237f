//! How many flows the kernel's maps hold.

use serde::Deserialize;

/// What one IPv4 flow takes: element header 48 bytes, key 16, record 192.
const FLOW4_BYTES: u64 = 256;

/// Services remembered: more than a busy host talks to at once, and little memory (152 bytes each).
const SERVICES: u32 = 8_192;

/// Entries of the kernel's maps. All are allocated when the daemon starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// IPv4 flows that completed the handshake.
    pub flows4: u32,
    /// IPv6 flows that completed the handshake.
    pub flows6: u32,
    /// IPv4 handshakes under way.
    pub embryos4: u32,
    /// IPv6 handshakes under way.
    pub embryos6: u32,
    /// Services whose handshakes are counted.
    pub services: u32,
    /// Bytes of the event ring: a power of two.
    pub events: u32,
}

impl MapSizes {
    /// About a half percent of the memory: as many IPv4 flows as fit into 1/256 of it, rounded down to a power of
    /// two, half as many IPv6 flows, a quarter of each for handshakes. From 16 GiB of `MemTotal` on, 262,144 IPv4 and
    /// 131,072 IPv6 flows are tracked; a machine with 16 GiB built in reports a little less, and tracks half as many.
    #[must_use]
    pub fn for_this_machine() -> Self {
        let info = rustix::system::sysinfo();
        #[expect(clippy::useless_conversion, reason = "the fields are u32 on 32-bit machines")]
        let total = u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit));
        Self::for_memory(total)
    }

    /// The same for a given amount of memory.
    #[must_use]
    pub fn for_memory(bytes: u64) -> Self {
        let flows = bytes / 256 / FLOW4_BYTES;
        let flows = (flows + 1).next_power_of_two() / 2;
        let flows4 = u32::try_from(flows.clamp(8_192, 1 << 20)).unwrap_or(1 << 20);
        let events = if bytes < 2 << 30 { 2 << 20 } else { 16 << 20 };
        Self {
            flows4,
            flows6: flows4 / 2,
            embryos4: flows4 / 4,
            embryos6: flows4 / 8,
            services: SERVICES,
            events,
        }
    }
}

/// The `[maps]` table of the configuration file.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SizeTable {
    flows4: Option<u32>,
    flows6: Option<u32>,
    embryos4: Option<u32>,
    embryos6: Option<u32>,
    services: Option<u32>,
    events: Option<u32>,
}

impl SizeTable {
    /// Overrides the sizes given.
    ///
    /// # Errors
    /// Says which size cannot be.
    pub(super) fn apply(self, sizes: &mut MapSizes) -> Result<(), String> {
        let Self { flows4, flows6, embryos4, embryos6, services, events } = self;
        for (name, from, to) in [
            ("flows4", flows4, &mut sizes.flows4),
            ("flows6", flows6, &mut sizes.flows6),
            ("embryos4", embryos4, &mut sizes.embryos4),
            ("embryos6", embryos6, &mut sizes.embryos6),
            ("services", services, &mut sizes.services),
        ] {
            if let Some(entries) = from {
                // An LRU map hands entries to CPUs in batches of 128: below that it evicts at random.
                if entries < 128 {
                    return Err(format!("maps.{name} = {entries}: at least 128"));
                }
                *to = entries;
            }
        }
        if let Some(bytes) = events {
            if !bytes.is_power_of_two() || bytes < 64 << 10 {
                return Err(format!("maps.events = {bytes}: a power of two, at least 65536"));
            }
            sizes.events = bytes;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_memory_within_limits() {
        assert_eq!(MapSizes::for_memory(0).flows4, 8_192);
        assert_eq!(MapSizes::for_memory(16 << 30).flows4, 262_144);
        assert_eq!(MapSizes::for_memory(23 << 30).flows4, 262_144);
        assert_eq!(MapSizes::for_memory(1 << 50).flows4, 1 << 20);
        assert!(MapSizes::for_memory(23 << 30).events.is_power_of_two());
    }

    #[test]
    fn impossible_sizes_are_named() {
        let mut sizes = MapSizes::for_memory(1 << 30);
        let error = SizeTable { events: Some(100_000), ..SizeTable::default() }.apply(&mut sizes);
        assert!(error.is_err_and(|text| text.contains("maps.events")));
        let error = SizeTable { flows6: Some(1), ..SizeTable::default() }.apply(&mut sizes);
        assert!(error.is_err_and(|text| text.contains("maps.flows6")));
    }
}
