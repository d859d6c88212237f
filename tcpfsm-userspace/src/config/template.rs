//! The file that `tcpfsm config default` prints.

use tcpfsm_common::abi::SAMPLE;

use super::Config;

/// Every setting with its default and what it is for. What depends on the machine is commented out.
#[must_use]
pub fn default_file() -> String {
    let config = Config::default();
    let Config {
        scope,
        pickup,
        event_quota,
        timeouts,
        stuck,
        detect,
        sweep_interval,
        maps,
        metrics,
        socket,
        ..
    } = &config;
    let table =
        |durations: &super::PerState| durations.iter().map(|entry| format!("{entry}\n")).collect::<String>();
    format!(
        r#"# Configuration of `tcpfsm run --config FILE`. Options on the command line win over this file.
# All values here are the defaults. Check a file with `tcpfsm config check FILE`.

# Interfaces to watch; --iface NAME on the command line replaces the list.
interfaces = []

# Whose traffic they carry:
#   host      this host's own: ingress and egress are watched
#   gateway   other hosts', forwarded: only ingress, which shows each packet once
#   mirror    a copy of other hosts': only ingress
vantage = "host"

# How incoming packets are seen:
#   auto   TCX on veth and loopback (native XDP on a veth turns its peer's segmentation offload off), XDP elsewhere
#   xdp    XDP; TCX where that does not work, or the slot holds somebody else's program, which is never replaced
#   tcx    TCX, or a clsact filter on kernels before 6.6
#   clsact a clsact filter, for outgoing packets too
ingress = "auto"

# How XDP is attached: auto (native where the driver can, else generic), native, generic.
xdp_mode = "auto"

# A number written into every flow key: keeps equal address pairs of different networks apart.
scope = {scope}

# Track connections that began before tcpfsm did.
pickup = {pickup}

# Under a flood events are a sample. Of handshakes, and of segments that move no connection, so many a second (2^30 ns) are
# told one by one, of the rest one in {SAMPLE}, which says that it stands for {SAMPLE} ("sample" in JSON). Handshakes that complete
# do not count towards this, and from ESTABLISHED on every step is told. Counters are exact all the same. 0: no sample.
# Segments of no known connection have a fixed quota: 1024 per CPU.
event_quota = {event_quota}

# Time between sweeps: they end silent flows, find stuck ones and count states. At least 100ms.
sweep_interval = "{sweep}"

# Where Prometheus metrics are served: "ADDRESS:PORT" or "off".
metrics = "{metrics}"

# The control socket, mode 0660: `tcpfsm watch`, `list`, `stats`, `explain` and `check` use it.
socket = "{socket}"

# Where events go: to stdout as text or jsonl (schema version 1), to the systemd journal (journal: anomalies only,
# journal-all: every event), or nowhere: none.
output = "text"

# What goes to stderr: error, warn, info, debug (the verifier's words and the kernel programs' log too), trace.
log_level = "info"

# How long an end may be silent in a state before it counts as closed; "off" for never.
# time_wait counts from its beginning. closed and listen: how long an ended flow is kept for stragglers.
[timeouts]
{timeouts}
# How long an end may stay in a state before it is reported as stuck; "off" where staying is normal.
[stuck]
{stuck}
# From when on each kind of anomaly is reported; "off" instead of a rule turns a kind off. docs/anomalies.md explains them.
#   count     how many there must be: connections, segments, targets
#   window    within this time
#   after     for how long it must have lasted (for ..._stuck and half_open, [stuck] says that)
#   percent   and they must make this share
[detect]
{detect}
# Sizes of the kernel's maps, allocated at the start: 256 bytes per IPv4 flow, 280 per IPv6 flow. The defaults
# follow the memory (1/256 of it for IPv4 flows, rounded down to a power of two); those of this machine are shown.
# When a map is full the least recently seen flow makes room. Handshakes that hang have maps of their own, so a SYN
# flood cannot evict a connection.
[maps]
# flows4 = {flows4}
# flows6 = {flows6}
# embryos4 = {embryos4}
# embryos6 = {embryos6}
# Addresses that answered a SYN, with counters of their handshakes; 152 bytes each.
# services = {services}
# Bytes of the event ring, a power of two; 120 bytes per event. It takes what the CPUs' own lanes have no room for.
# events = {events}
"#,
        sweep = humantime::format_duration(*sweep_interval),
        socket = socket.display(),
        timeouts = table(timeouts),
        stuck = table(stuck),
        detect = detect.iter().map(|(kind, rule)| format!("{} = {rule}\n", kind.name())).collect::<String>(),
        flows4 = maps.flows4,
        flows6 = maps.flows6,
        embryos4 = maps.embryos4,
        embryos6 = maps.embryos6,
        services = maps.services,
        events = maps.events,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;

    #[test]
    fn the_default_file_says_the_defaults() {
        assert_eq!(parse(&default_file()).unwrap(), Config::default());
    }

    #[test]
    fn commented_settings_are_accepted_too() {
        let uncommented: String = default_file()
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(setting) if setting.contains(" = ") => format!("{setting}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert_eq!(parse(&uncommented).unwrap(), Config::default());
    }
}
