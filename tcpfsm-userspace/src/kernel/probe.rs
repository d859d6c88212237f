//! Whether this process may, and this kernel can, run the programs: asked before the kernel answers `EPERM`.

use std::{fs, path::Path};

use rustix::system::uname;

use crate::error::{Error, Result};

/// The oldest kernel whose features suffice: multi-buffer XDP (`xdp.frags`) came last.
const OLDEST: (u32, u32) = (5, 18);

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;
/// CAP_PERFMON: without it the verifier refuses arithmetic on pointers by numbers that it cannot foretell.
const CAP_PERFMON: u32 = 38;

/// Checks privileges and kernel.
///
/// # Errors
/// Says what is missing and how to come by it.
pub fn check() -> Result<()> {
    let release = uname().release().to_string_lossy().into_owned();
    let lacks = |lacks, remedy| Error::Kernel { release: release.clone(), lacks, remedy };
    if parse_release(&release).is_some_and(|version| version < OLDEST) {
        return Err(lacks("it is older than 5.18", "Linux 5.18 or newer; 6.6 or newer is best (TCX)"));
    }
    check_capabilities()?;
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(lacks(
            "it has no BTF type information (/sys/kernel/btf/vmlinux is missing)",
            "a kernel with CONFIG_DEBUG_INFO_BTF=y, as Debian, Ubuntu, Fedora and RHEL ship; in a container, mount /sys",
        ));
    }
    Ok(())
}

/// Checks privileges.
///
/// # Errors
/// Names the capabilities that are missing.
pub fn check_capabilities() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").map_err(Error::io("read /proc/self/status"))?;
    let missing = missing_capabilities(effective_capabilities(&status).unwrap_or(0));
    if missing.is_empty() { Ok(()) } else { Err(Error::Privileges { missing }) }
}

/// Whether the kernel has TCX links (Linux 6.6).
#[must_use]
pub fn has_tcx() -> bool {
    parse_release(&uname().release().to_string_lossy()).is_none_or(|version| version >= (6, 6))
}

fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective >> bit & 1 != 0;
    let mut missing = Vec::new();
    // CAP_BPF came out of CAP_SYS_ADMIN in Linux 5.8; either will do.
    if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        missing.push("CAP_BPF");
    }
    if !has(CAP_PERFMON) && !has(CAP_SYS_ADMIN) {
        missing.push("CAP_PERFMON");
    }
    if !has(CAP_NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    missing
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_parse() {
        assert_eq!(parse_release("6.1.0-18-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse_release("6.18.44"), Some((6, 18)));
        assert_eq!(parse_release("5.10-rc3"), Some((5, 10)));
        assert_eq!(parse_release("next"), None);
    }

    #[test]
    fn capabilities_are_read_from_status() {
        let status = "Name:\ttcpfsm\nCapEff:\t000001ffffffffff\n";
        assert_eq!(missing_capabilities(effective_capabilities(status).unwrap()), [""; 0]);
        assert_eq!(missing_capabilities(0), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities(1 << CAP_BPF | 1 << CAP_PERFMON | 1 << CAP_NET_ADMIN), [""; 0]);
        assert_eq!(missing_capabilities(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
    }
}
