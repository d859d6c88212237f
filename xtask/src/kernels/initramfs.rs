//! What an emulated machine finds when it boots: the tests at the paths they were built at, their files, `ip`, `tc` and `ss`, all with
//! their libraries, the kernel's modules, and a busybox.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::debian::Kernel;
use super::machine::{BEGINNING, END};
use crate::command::{output, which};
use crate::workspace::Workspace;

/// What the lab, the daemon and its clsact filters need, each behind what it needs itself.
const MODULES: [&str; 7] = [
    "drivers/net/veth",
    "net/ipv4/inet_diag",
    "net/ipv4/tcp_diag",
    "net/sched/sch_ingress",
    "net/sched/sch_prio",
    "net/sched/cls_bpf",
    "net/sched/cls_u32",
];

/// Programs that tests start.
const TOOLS: [&str; 6] = ["ip", "tc", "ss", "sleep", "env", "nohup"];

/// What the init script uses of busybox.
const APPLETS: [&str; 5] = ["sh", "mount", "insmod", "echo", "poweroff"];

/// A tree that becomes an archive.
struct Tree {
    root: PathBuf,
}

/// Makes the archive.
pub(super) fn build(workspace: &Workspace, kernel: &Kernel, programs: &[PathBuf]) -> Result<PathBuf> {
    let kernels = workspace.target().join("kernels");
    let tree = Tree { root: kernels.join(format!("{}.root", kernel.version)) };
    let _ = fs::remove_dir_all(&tree.root);
    for directory in ["proc", "sys", "dev", "run", "tmp", "bin", "root", "modules"] {
        fs::create_dir_all(tree.root.join(directory))?;
    }
    let busybox = which("busybox").context("busybox is missing")?;
    tree.add_program(&busybox)?;
    for applet in APPLETS {
        symlink(&busybox, tree.root.join("bin").join(applet))?;
    }
    for tool in TOOLS {
        tree.add_program(&which(tool).with_context(|| format!("{tool} is missing"))?)?;
    }
    for module in MODULES {
        tree.add_module(kernel, module)?;
    }
    for program in programs.iter().chain([&workspace.target().join("checked/tcpfsm")]) {
        tree.add_program(program)?;
    }
    for directory in
        [workspace.root().join("tcpfsm-userspace/tests"), workspace.root().join("../shared/conformance")]
    {
        tree.add_files(&directory)?;
    }
    let init = tree.root.join("init");
    fs::write(&init, script(workspace, programs))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    tree.archive(&kernels.join(format!("{}.initramfs", kernel.version)))
}

impl Tree {
    /// Where a path of this machine lies.
    fn place(&self, path: &Path) -> Result<PathBuf> {
        let place = self.root.join(path.strip_prefix("/").unwrap_or(path));
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        Ok(place)
    }

    /// A program without what debuggers read, which is most of it, and the libraries it is linked with.
    fn add_program(&self, path: &Path) -> Result<()> {
        let place = self.place(path)?;
        output(Command::new("strip").arg("-o").args([&place, &path.canonicalize()?]))?;
        // It fails where nothing is linked, which is as well.
        let linked = Command::new("ldd").arg(path).output().context("cannot start ldd")?.stdout;
        for library in libraries(&String::from_utf8_lossy(&linked)) {
            let place = self.place(library)?;
            if !place.exists() {
                fs::copy(library, &place).with_context(|| format!("copy {}", library.display()))?;
            }
        }
        Ok(())
    }

    fn add_files(&self, directory: &Path) -> Result<()> {
        // The shared folder is not part of a checkout; tests that read it say so.
        let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                self.add_files(&path)?;
            } else {
                fs::copy(&path, self.place(&path)?).with_context(|| format!("copy {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// A module, unpacked: busybox reads no other. One that is not there may be built in.
    fn add_module(&self, kernel: &Kernel, module: &str) -> Result<()> {
        let name = module.rsplit('/').next().unwrap_or(module);
        let place = self.root.join("modules").join(format!("{name}.ko"));
        let plain = kernel.modules.join(format!("{module}.ko"));
        let packed = kernel.modules.join(format!("{module}.ko.xz"));
        if plain.exists() {
            fs::copy(&plain, &place)?;
        } else if packed.exists() {
            fs::write(&place, output(Command::new("xz").args(["--decompress", "--stdout"]).arg(&packed))?)?;
        }
        Ok(())
    }

    fn archive(&self, path: &Path) -> Result<PathBuf> {
        let mut find =
            Command::new("find").arg(".").current_dir(&self.root).stdout(Stdio::piped()).spawn()?;
        let names = find.stdout.take().context("find has no stdout")?;
        let file = fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
        let status = Command::new("cpio")
            .args(["--create", "--format=newc", "--quiet", "--owner=0:0"])
            .current_dir(&self.root)
            .stdin(names)
            .stdout(file)
            .status()
            .context("cannot start cpio")?;
        if !find.wait()?.success() || !status.success() {
            bail!("cpio could not make {}", path.display());
        }
        Ok(path.to_owned())
    }
}

/// The libraries in what `ldd` says: `libc.so.6 => /lib/libc.so.6 (0x...)`, or a path alone for the loader.
fn libraries(ldd: &str) -> impl Iterator<Item = &Path> {
    ldd.lines().flat_map(|line| line.split_whitespace()).filter(|word| word.starts_with('/')).map(Path::new)
}

/// The first program of the machine, and its last.
fn script(workspace: &Workspace, programs: &[PathBuf]) -> String {
    let mut script = String::from(
        "#!/bin/sh\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n\
         mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev\n\
         mount -t tmpfs tmpfs /run\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup; mount -t tracefs tracefs /sys/kernel/tracing\n",
    );
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        script += &format!("insmod /modules/{name}.ko\n");
    }
    script += "ip link set lo up\n";
    script += &format!("echo {BEGINNING}\ncd '{}'\n", workspace.root().join("tcpfsm-userspace").display());
    for program in programs {
        // One at a time: the machine is slow enough.
        script += &format!("'{}' --test-threads=1 --show-output 2>&1\n", program.display());
    }
    script + &format!("echo {END}\npoweroff -f\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_names() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f0)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        let paths: Vec<&Path> = libraries(ldd).collect();
        assert_eq!(
            paths,
            [Path::new("/lib/x86_64-linux-gnu/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]
        );
        assert_eq!(libraries("\tstatically linked\n").count(), 0);
    }
}
