//! What the sources say of their own names: the doc comments, which a program cannot ask the compiler for.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// One variant or field and what is said of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) name: String,
    /// A field's type; empty for a variant.
    pub(super) kind: String,
    /// The doc comment, in one line.
    pub(super) words: String,
}

/// Variants of an enum, or public fields of a struct, in their order.
pub(super) fn items(root: &Path, file: &str, declaration: &str) -> Result<Vec<Item>> {
    let path = root.join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    parse(&text, declaration).with_context(|| format!("{file} has no `pub {declaration}`"))
}

fn parse(text: &str, declaration: &str) -> Option<Vec<Item>> {
    let start = format!("pub {declaration} {{");
    let body = text.lines().skip_while(|line| *line != start).skip(1).take_while(|line| *line != "}");
    let mut items = Vec::new();
    let mut words: Vec<&str> = Vec::new();
    for line in body {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix("///") {
            words.push(comment.trim());
        } else if !line.starts_with("#[") && !line.is_empty() {
            let code = line.trim_start_matches("pub ").trim_end_matches(',');
            let (name, kind) = match code.split_once(": ") {
                Some((name, kind)) => (name, kind),
                None => (code.split(" = ").next().unwrap_or(code), ""),
            };
            items.push(Item { name: name.to_owned(), kind: kind.to_owned(), words: plain(&words.join(" ")) });
            words.clear();
        }
    }
    (!items.is_empty()).then_some(items)
}

/// Without the links that only rustdoc follows.
fn plain(words: &str) -> String {
    let mut out = String::new();
    let mut rest = words;
    while let Some(at) = rest.find("[`") {
        let (before, link) = rest.split_at(at);
        let Some((name, after)) = link[2..].split_once("`]") else { break };
        let after = match after.strip_prefix('(').and_then(|target| target.split_once(')')) {
            Some((_, after)) => after,
            None => after,
        };
        out.push_str(&format!(
            "{before}`{}`",
            name.trim_start_matches("Self::").trim_start_matches("super::")
        ));
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_and_fields_come_with_their_words() {
        let text = "/// Not this.\npub enum A {\n    /// One\n    /// line.\n    First = 0,\n    #[default]\n    Second,\n}\n\
                    pub struct B {\n    /// By [`Hook`](super::Hook), see [`Self::SEEN`].\n    pub x: [u64; 2],\n}\n";
        let item = |name: &str, kind: &str, words: &str| Item {
            name: name.into(),
            kind: kind.into(),
            words: words.into(),
        };
        assert_eq!(parse(text, "enum A"), Some(vec![item("First", "", "One line."), item("Second", "", "")]));
        assert_eq!(parse(text, "struct B"), Some(vec![item("x", "[u64; 2]", "By `Hook`, see `SEEN`.")]));
        assert_eq!(parse(text, "struct C"), None);
    }
}
