//! `cargo xtask docs`: the parts of the documentation that are drawn from the code.
//!
//! A page marks such a part with `<!-- generated: NAME -->` and `<!-- end generated -->`. What stands between is
//! rewritten; with `--check`, and in `cargo xtask tidy`, it is compared instead.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::progress::{heading, note};
use crate::workspace::Workspace;

mod layout;
mod machine;
mod metrics;
mod names;
mod source;

const BEGIN: &str = "<!-- generated: ";
const BEGIN_END: &str = " -->";
const END: &str = "<!-- end generated -->";

/// The subcommand.
pub fn main(workspace: &Workspace, check: bool) -> Result<()> {
    heading(if check { "Checking the generated documentation" } else { "Generating documentation" });
    let stale = pages(workspace.root())?;
    if check && !stale.is_empty() {
        let names: Vec<String> = stale.iter().map(|page| page.name()).collect();
        bail!("these pages do not say what the code says: {}\n  remedy: cargo xtask docs", names.join(", "));
    }
    for page in &stale {
        fs::write(&page.path, &page.text).with_context(|| format!("write {}", page.path.display()))?;
        note(&format!("rewrote {}", page.name()));
    }
    if stale.is_empty() {
        note("nothing to do");
    }
    Ok(())
}

/// A finding for every page whose generated parts are stale.
pub fn findings(root: &Path) -> Result<Vec<String>> {
    let stale = pages(root)?;
    Ok(stale
        .iter()
        .map(|page| format!("{}: generated parts are stale (cargo xtask docs)", page.name()))
        .collect())
}

/// A page that must change, and what it should say.
struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The pages that must change: `README.md` and whatever lies in `docs/`.
fn pages(root: &Path) -> Result<Vec<Page>> {
    let mut paths = vec![root.join("README.md")];
    // A source archive may come without the documentation.
    if let Ok(entries) = fs::read_dir(root.join("docs")) {
        paths.extend(entries.flatten().map(|entry| entry.path()));
    }
    paths.sort();
    let mut stale = Vec::new();
    for path in paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let Ok(old) = fs::read_to_string(&path) else { continue };
        let text =
            rewrite(&old, &|name| block(root, name)).with_context(|| format!("in {}", path.display()))?;
        if text != old {
            stale.push(Page { path, text });
        }
    }
    Ok(stale)
}

/// The text of one generated part.
fn block(root: &Path, name: &str) -> Result<String> {
    match name {
        "diagram" => Ok(machine::diagram()),
        "exits" => Ok(machine::exits()),
        "transitions" => Ok(machine::table()),
        "states" => machine::states(root),
        "events" => machine::events(root),
        "facts" => names::facts(root),
        "close-reasons" => names::close_reasons(root),
        "outcomes" => names::outcomes(root),
        "health" => names::health(root),
        "metrics" => metrics::table(root),
        other => match other.strip_prefix("layout ") {
            Some(name) => layout::table(root, name),
            None => bail!("nothing generates {other:?}"),
        },
    }
}

/// The text with every marked part replaced.
fn rewrite(text: &str, block: &dyn Fn(&str) -> Result<String>) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let (before, marked) = rest.split_at(at);
        let name = marked.strip_prefix(BEGIN).and_then(|marked| marked.split_once(BEGIN_END));
        let Some((name, after)) = name else { bail!("a marker without `{BEGIN_END}`") };
        let Some((_, after)) = after.split_once(END) else { bail!("no `{END}` after {name:?}") };
        out.push_str(before);
        out.push_str(&format!("{BEGIN}{name}{BEGIN_END}\n\n{}\n\n{END}", block(name)?.trim_end()));
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// A table in Markdown.
fn markdown(header: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells.map(|cell| cell.replace('|', r"\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = line(&mut header.iter().copied());
    text.push_str(&line(&mut header.iter().map(|_| "---")));
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_marked_changes() {
        let page = "a\n<!-- generated: x -->\nold\n<!-- end generated -->\nb\n";
        let once = rewrite(page, &|name| Ok(format!("<{name}>"))).unwrap();
        assert_eq!(once, "a\n<!-- generated: x -->\n\n<x>\n\n<!-- end generated -->\nb\n");
        assert_eq!(rewrite(&once, &|_| Ok("<x>".into())).unwrap(), once, "a second run changes nothing");
    }

    #[test]
    fn a_marker_without_an_end_is_an_error() {
        assert!(rewrite("<!-- generated: x -->\nold\n", &|_| Ok(String::new())).is_err());
        assert!(rewrite("<!-- generated: x", &|_| Ok(String::new())).is_err());
    }

    #[test]
    fn every_generator_works() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for name in [
            "diagram",
            "exits",
            "transitions",
            "states",
            "events",
            "facts",
            "close-reasons",
            "outcomes",
            "health",
            "metrics",
        ] {
            assert!(!block(root, name).unwrap().is_empty(), "{name}");
        }
        assert!(block(root, "weather").is_err());
    }
}
