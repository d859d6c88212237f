//! Where a process belongs: systemd unit, container and pod, from its cgroup path alone.
//!
//! No container runtime and no API server is asked: every runtime writes its ids into the path.

use super::process::printable;

/// What a cgroup path says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The innermost systemd service or scope, unless the scope only wraps a container.
    pub unit: Option<String>,
    /// The innermost container's id, in full.
    pub container: Option<String>,
    /// The Kubernetes pod's UID, with dashes; of a static pod, the hash of its file.
    pub pod: Option<String>,
}

impl Placement {
    /// From the text of `/proc/PID/cgroup`: lines `hierarchy:controllers:path`, of cgroup v2 (`0::`), of v1, or
    /// of both at once.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut lines: Vec<(u8, &str)> = text.lines().filter_map(line).collect();
        // On a mixed host systemd keeps its units in v2 or in name=systemd; container ids may be in any.
        lines.sort_by_key(|(rank, _)| *rank);
        lines.into_iter().map(|(_, path)| Self::of_path(path)).fold(Self::default(), Self::or)
    }

    /// From one path of a cgroup, absolute, or relative to a cgroup namespace (`/../..`).
    #[must_use]
    pub fn of_path(path: &str) -> Self {
        let mut placement = Self::default();
        for component in path.split('/') {
            // Nested: a later component is further in.
            if let Some(pod) = pod(component) {
                placement.pod = Some(pod);
            }
            if let Some(container) = container(component) {
                placement.container = Some(printable(container.as_bytes()));
            } else if component.ends_with(".service") || component.ends_with(".scope") {
                placement.unit = Some(printable(component.as_bytes()));
            }
        }
        placement
    }

    fn or(self, other: Self) -> Self {
        Self {
            unit: self.unit.or(other.unit),
            container: self.container.or(other.container),
            pod: self.pod.or(other.pod),
        }
    }
}

fn line(line: &str) -> Option<(u8, &str)> {
    // The path may hold colons of its own: containerd's does.
    let mut fields = line.splitn(3, ':');
    let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let rank = match (hierarchy, controllers) {
        ("0", "") => 0,
        (_, "name=systemd") => 1,
        _ => 2,
    };
    Some((rank, path))
}

/// Docker, containerd, CRI-O, podman, ECS: the id is 64 hex digits, alone or after the runtime's name:
/// `ID`, `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID`, `libpod-ID.scope`,
/// `kubepods-burstable-podUID.slice:cri-containerd:ID`. LXC: `lxc.payload.NAME`.
fn container(component: &str) -> Option<&str> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    if let Some(name) = name.strip_prefix("lxc.payload.") {
        return Some(name).filter(|name| !name.is_empty());
    }
    let (runtime, id) = match name.rfind(['-', ':']) {
        Some(at) => (name.get(..at)?, name.get(at + 1..)?),
        None => ("", name),
    };
    // conmon watches a container from outside.
    (is_hex(id, 64) && !runtime.ends_with("conmon")).then_some(id)
}

/// `podUID` with the cgroupfs driver, `kubepods[-QOS]-podUID.slice` with systemd's, which has `_` for `-`.
fn pod(component: &str) -> Option<String> {
    let name = component.split(':').next()?;
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None if name.contains("kubepods") => name.rsplit_once("-pod")?.1,
        None => return None,
    };
    let uid = uid.replace('_', "-");
    let groups: Vec<&str> = uid.split('-').collect();
    let is_uid = match groups.as_slice() {
        [a, b, c, d, e] => is_hex(a, 8) && is_hex(b, 4) && is_hex(c, 4) && is_hex(d, 4) && is_hex(e, 12),
        [hash] => is_hex(hash, 32),
        _ => false,
    };
    is_uid.then_some(uid)
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f1c0a9d7be24c5f8e6b1a2d3c4f5e6078091a2b3c4d5e6f708192a3b4c5d6e7";
    const UID: &str = "8f0ccd94-1b1a-4d0b-9d50-6a5ae8a0c0de";

    type Text = &'static str;
    type Expected = Option<&'static str>;

    /// A description, `/proc/PID/cgroup` with `{id}`, `{uid}` and `{uid_}` to fill in, then unit, container, pod.
    const CASES: &[(Text, Text, Expected, Expected, Expected)] = &[
        ("kernel thread, v2", "0::/", None, None, None),
        ("no such file", "", None, None, None),
        ("system service, v2", "0::/system.slice/nginx.service", Some("nginx.service"), None, None),
        (
            "template instance, delegated subgroup",
            "0::/system.slice/system-app.slice/app@1.service/worker",
            Some("app@1.service"),
            None,
            None,
        ),
        ("login session", "0::/user.slice/user-0.slice/session-3.scope", Some("session-3.scope"), None, None),
        (
            "user service",
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/syncthing.service",
            Some("syncthing.service"),
            None,
            None,
        ),
        (
            "system service, v1",
            "12:pids:/system.slice/ssh.service\n1:name=systemd:/system.slice/ssh.service\n0::/",
            Some("ssh.service"),
            None,
            None,
        ),
        (
            "service, hybrid",
            "4:memory:/other\n1:name=systemd:/\n0::/system.slice/a.service",
            Some("a.service"),
            None,
            None,
        ),
        ("docker, v1", "5:cpuset:/docker/{id}\n1:name=systemd:/docker/{id}", None, Some("{id}"), None),
        ("docker, v2 cgroupfs", "0::/docker/{id}", None, Some("{id}"), None),
        ("docker, systemd driver", "0::/system.slice/docker-{id}.scope", None, Some("{id}"), None),
        ("dockerd itself", "0::/system.slice/docker.service", Some("docker.service"), None, None),
        (
            "containerd in k8s, systemd driver",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice/cri-containerd-{id}.scope",
            None,
            Some("{id}"),
            Some("{uid}"),
        ),
        (
            "guaranteed pod",
            "0::/kubepods.slice/kubepods-pod{uid_}.slice/crio-{id}.scope",
            None,
            Some("{id}"),
            Some("{uid}"),
        ),
        (
            "k8s, cgroupfs driver, v1",
            "3:cpu,cpuacct:/kubepods/besteffort/pod{uid}/{id}",
            None,
            Some("{id}"),
            Some("{uid}"),
        ),
        (
            "containerd below its own service",
            "0::/system.slice/containerd.service/kubepods-besteffort-pod{uid_}.slice:cri-containerd:{id}",
            Some("containerd.service"),
            Some("{id}"),
            Some("{uid}"),
        ),
        (
            "static pod",
            "0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/{id}",
            None,
            Some("{id}"),
            Some("0123456789abcdef0123456789abcdef"),
        ),
        (
            "cri-o with a container subgroup",
            "0::/kubepods.slice/kubepods-pod{uid_}.slice/crio-{id}.scope/container",
            None,
            Some("{id}"),
            Some("{uid}"),
        ),
        ("podman", "0::/machine.slice/libpod-{id}.scope/container", None, Some("{id}"), None),
        (
            "podman without root",
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{id}.scope",
            Some("user@1000.service"),
            Some("{id}"),
            None,
        ),
        ("podman, cgroupfs driver", "0::/libpod_parent/libpod-{id}", None, Some("{id}"), None),
        (
            "podman's monitor is outside",
            "0::/machine.slice/libpod-conmon-{id}.scope",
            Some("libpod-conmon-{id}.scope"),
            None,
            None,
        ),
        ("ECS", "9:memory:/ecs/0f1e2d3c/{id}", None, Some("{id}"), None),
        ("LXC", "0::/lxc.payload.web1/system.slice/nginx.service", Some("nginx.service"), Some("web1"), None),
        (
            "kind: a kubelet in a container",
            "0::/docker/3f/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{uid_}.slice/cri-containerd-{id}.scope",
            None,
            Some("{id}"),
            Some("{uid}"),
        ),
        (
            "seen from a cgroup namespace",
            "0::/../../system.slice/cron.service",
            Some("cron.service"),
            None,
            None,
        ),
        (
            "a service that only looks like a pod",
            "0::/system.slice/podman.service",
            Some("podman.service"),
            None,
            None,
        ),
        ("a short hash is no container", "0::/docker/3f1c0a9d7be2", None, None, None),
        ("not a line", "nonsense\n::\n7", None, None, None),
    ];

    #[test]
    fn every_runtime_is_recognised() {
        let fill = |text: &str| {
            text.replace("{id}", ID).replace("{uid}", UID).replace("{uid_}", &UID.replace('-', "_"))
        };
        for (name, text, unit, container, pod) in CASES {
            let expected =
                Placement { unit: unit.map(fill), container: container.map(fill), pod: pod.map(fill) };
            assert_eq!(Placement::parse(&fill(text)), expected, "{name}");
        }
    }
}
