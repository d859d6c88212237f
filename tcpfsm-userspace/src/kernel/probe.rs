//! Whether this process may, and this kernel can, run the programs: asked before the kernel answers `EPERM`.

use std::{fs, path::Path};

use aya::{
    programs::{ProgramType, SchedClassifier, TcAttachType},
    sys::{BpfHelper, is_helper_supported},
};
use rustix::system::uname;

use super::attach::errno;
use crate::error::{Error, Result};

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;
/// CAP_PERFMON: without it the verifier refuses arithmetic on pointers by numbers that it cannot foretell.
const CAP_PERFMON: u32 = 38;

/// Checks privileges and kernel: what it can, not its version, which says little where features are ported back.
///
/// # Errors
/// Says what is missing and how to come by it.
pub fn check() -> Result<()> {
    let release = uname().release().to_string_lossy().into_owned();
    let lacks = |lacks, remedy| Error::Kernel { release: release.clone(), lacks, remedy };
    check_capabilities()?;
    if !has_helper(ProgramType::RawTracePoint, BpfHelper::BPF_FUNC_for_each_map_elem) {
        return Err(lacks(
            "it has no bpf_for_each_map_elem",
            "Linux 5.13 or newer; 6.6 or newer is best (XDP since 5.18, TCX since 6.6)",
        ));
    }
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

/// Whether XDP programs may read packets that are in pieces (Linux 5.18): ours must.
#[must_use]
pub fn has_multi_buffer_xdp() -> bool {
    has_helper(ProgramType::Xdp, BpfHelper::BPF_FUNC_xdp_load_bytes)
}

/// Whether the kernel has TCX (Linux 6.6), asked about an interface.
#[must_use]
pub fn has_tcx(interface: &str) -> bool {
    match SchedClassifier::query_tcx(interface, TcAttachType::Ingress) {
        Ok(_) => true,
        // Whatever else is wrong shows when a program is attached.
        Err(error) => errno(&error) != Some(libc::EINVAL),
    }
}

/// Whether programs of a type may call a helper. Where that cannot be found out, loading them will.
fn has_helper(program: ProgramType, helper: BpfHelper) -> bool {
    is_helper_supported(program, helper).unwrap_or(true)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_status() {
        let status = "Name:\ttcpfsm\nCapEff:\t000001ffffffffff\n";
        assert_eq!(missing_capabilities(effective_capabilities(status).unwrap()), [""; 0]);
        assert_eq!(missing_capabilities(0), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities(1 << CAP_BPF | 1 << CAP_PERFMON | 1 << CAP_NET_ADMIN), [""; 0]);
        assert_eq!(missing_capabilities(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
    }
}
