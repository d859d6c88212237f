//! `cargo xtask tidy`: house rules that no compiler knows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::docs;
use crate::progress::{heading, note};
use crate::workspace::Workspace;

/// One concept per file; what is longer has more than one, or is listed here with its reason.
const LONGEST_SOURCE: usize = 500;
const LONG_ON_PURPOSE: &[&str] = &[];

/// How far above an `unsafe` block its `SAFETY:` comment may begin.
const SAFETY_REACH: usize = 8;

/// The subcommand, and a step of `cargo xtask test`.
pub fn main(workspace: &Workspace) -> Result<()> {
    heading("Checking the house rules");
    let files = tracked_files(workspace.root())?;
    let mut findings = Vec::new();
    for path in &files {
        // Binary files and files deleted but not yet committed have no lines to look at.
        let Ok(text) = fs::read_to_string(workspace.root().join(path)) else { continue };
        inspect(path, &text, &mut findings);
    }
    check_abi_constants(workspace.root(), &mut findings)?;
    findings.extend(docs::findings(workspace.root())?);
    if findings.is_empty() {
        note(&format!("{} files, nothing to report", files.len()));
        return Ok(());
    }
    bail!("house rules broken:\n  {}", findings.join("\n  "));
}

fn inspect(path: &Path, text: &str, findings: &mut Vec<String>) {
    let name = path.to_string_lossy();
    let mut report = |line: usize, what: &str| findings.push(format!("{name}:{}: {what}", line + 1));
    for (number, line) in text.lines().enumerate() {
        if names_a_machine(line) {
            report(number, "a path of one machine");
        }
    }
    if path.extension().is_none_or(|extension| extension != "rs") {
        return;
    }
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > LONGEST_SOURCE && name.contains("/src/") && !LONG_ON_PURPOSE.contains(&&*name) {
        report(
            lines.len() - 1,
            "more than 500 lines: split it, or list it in xtask/src/tidy.rs with a reason",
        );
    }
    for (number, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if opens_unsafe(code) && !explained(&lines[number.saturating_sub(SAFETY_REACH)..=number]) {
            report(number, "`unsafe` without a SAFETY comment");
        }
        // Numbers cannot all be named: the last arm of a decoder is `_`.
        let after_number =
            number > 0 && lines[number - 1].trim_start().starts_with(|c: char| c.is_ascii_digit());
        if name.starts_with("tcpfsm-common/src/fsm/") && is_wildcard_arm(code) && !after_number {
            report(number, "a `_` arm in the state machine: name every case");
        }
    }
}

/// Directories of somebody's machine. Put together here so that this file does not report itself.
fn names_a_machine(line: &str) -> bool {
    ["work", "tmp/wt", "root", "home"].iter().any(|directory| {
        let needle = format!("/{directory}/");
        line.match_indices(&needle).any(|(at, _)| {
            // `x/work/` is relative, `$HOME/root/` is somebody else's business, `//root/` is part of an address.
            !line[..at].ends_with(|before: char| before.is_alphanumeric() || "./_-}~*>".contains(before))
        })
    })
}

fn opens_unsafe(code: &str) -> bool {
    code.contains(concat!("unsafe", " {")) || code.contains(concat!("unsafe", " impl"))
}

fn explained(lines: &[&str]) -> bool {
    lines.iter().any(|line| line.contains("SAFETY:"))
}

fn is_wildcard_arm(code: &str) -> bool {
    let code = code.trim_start();
    code.starts_with("_ =>")
        || code.starts_with("_ if ")
        || code.contains(", _) =>") && code.starts_with("(_,")
}

/// Every constant that crosses the kernel boundary is described where users look it up.
fn check_abi_constants(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let (sources, page) = (root.join("tcpfsm-common/src/abi"), root.join("docs/abi.md"));
    let (Ok(entries), Ok(page)) = (fs::read_dir(&sources), fs::read_to_string(page)) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry.context("read the ABI's directory")?.path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        for line in text.lines() {
            let name = line.strip_prefix("pub const ").and_then(|rest| rest.split([':', ' ']).next());
            if let Some(name) = name.filter(|name| *name != "fn" && !page.contains(name)) {
                let file = path.strip_prefix(root).unwrap_or(&path).display();
                findings.push(format!("{file}: docs/abi.md does not mention {name}"));
            }
        }
    }
    Ok(())
}

fn tracked_files(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git").current_dir(root).args(["ls-files", "-z"]).output();
    match output {
        Ok(output) if output.status.success() => Ok(output
            .stdout
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| PathBuf::from(String::from_utf8_lossy(name).into_owned()))
            .collect()),
        // A source archive has no git; nor may a checkout of someone else's (sudo) be listed.
        _ => walk(root, root),
    }
}

fn walk(root: &Path, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = entry.file_name();
        if kind.is_dir() && name != "target" && name != ".git" {
            files.extend(walk(root, &path)?);
        } else if kind.is_file() {
            files.push(path.strip_prefix(root).unwrap_or(&path).to_path_buf());
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        inspect(Path::new(path), text, &mut findings);
        findings
    }

    #[test]
    fn finds_paths_of_one_machine() {
        let path = concat!("see /", "work/notes");
        assert_eq!(findings("README.md", path), ["README.md:1: a path of one machine"]);
        assert!(findings("README.md", "run it in docs/work/ or ../root/").is_empty());
    }

    #[test]
    fn wants_a_reason_for_unsafe() {
        let bare = concat!("fn f() { unsafe", " { g() } }");
        assert_eq!(findings("x/src/a.rs", bare).len(), 1);
        assert!(findings("x/src/a.rs", &format!("// SAFETY: g is harmless\n{bare}")).is_empty());
    }

    #[test]
    fn wants_the_state_machine_exhaustive() {
        let arm = "        _ => None,";
        assert_eq!(findings("tcpfsm-common/src/fsm/transition.rs", arm).len(), 1);
        assert!(findings("tcpfsm-common/src/packet/tcp.rs", arm).is_empty());
        let decoder = "        1 => Self::Listen,\n        _ => Self::Closed,";
        assert!(findings("tcpfsm-common/src/fsm/state.rs", decoder).is_empty());
    }

    #[test]
    fn wants_short_files() {
        let long = "//\n".repeat(LONGEST_SOURCE + 1);
        assert_eq!(findings("x/src/a.rs", &long).len(), 1);
        assert!(findings("x/tests/a.rs", &long).is_empty());
    }
}
