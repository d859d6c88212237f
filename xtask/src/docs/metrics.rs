//! The metrics, from the golden page that the exporter's own test compares with.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::markdown;

const GOLDEN: &str = "tcpfsm-userspace/tests/golden/metrics.prom";

/// Every family: name, type, labels, help.
pub(super) fn table(root: &Path) -> Result<String> {
    let path = root.join(GOLDEN);
    let page = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let rows = families(&page);
    ensure!(!rows.is_empty(), "{GOLDEN} has no metrics");
    Ok(markdown(&["metric", "type", "labels", "meaning"], &rows))
}

fn families(page: &str) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            rows.push(vec![format!("`{name}`"), String::new(), String::new(), help.to_owned()]);
        } else if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            if let Some(row) = rows.last_mut() {
                kind.clone_into(&mut row[1]);
            }
        } else if let Some(row) = rows.last_mut().filter(|row| row[2].is_empty()) {
            row[2] = labels(line);
        }
    }
    rows
}

/// The labels of a sample, without the bucket's limit.
fn labels(sample: &str) -> String {
    let inside =
        sample.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inside, _)| inside);
    let names: Vec<&str> = inside
        .split("\",")
        .filter_map(|label| Some(label.split_once('=')?.0))
        .filter(|name| *name != "le")
        .collect();
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_a_row() {
        let page = "# HELP a Of a thing.\n# TYPE a histogram\na_bucket{x=\"1\",le=\"2\"} 0\n# HELP b B.\n# TYPE b gauge\nb 1\n";
        assert_eq!(families(page), [["`a`", "histogram", "x", "Of a thing."], ["`b`", "gauge", "-", "B."]]);
    }
}
