//! The committed budgets, and whether a run keeps them.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::rig::Table;

const COMMITTED: &str = include_str!("budgets.toml");

/// One budget: a row at most (a time) or at least (a rate) so many times another of its group; without another, so much.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    group: String,
    row: String,
    to: Option<String>,
    at_most: Option<f64>,
    at_least: Option<f64>,
    why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budgets {
    budget: Vec<Budget>,
    verifier: Verifier,
}

/// What a program may cost the verifier.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verifier {
    pub instructions: u32,
}

/// A budget, measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub group: String,
    pub row: String,
    pub to: Option<String>,
    pub at_most: Option<f64>,
    pub at_least: Option<f64>,
    /// To the other row; else the row itself.
    pub ratio: f64,
    pub mad: f64,
    pub kept: bool,
    pub why: String,
}

fn committed() -> Result<Budgets> {
    toml::from_str(COMMITTED).context("read budgets.toml")
}

/// The verifier's budget.
pub fn verifier() -> Result<Verifier> {
    Ok(committed()?.verifier)
}

/// Every budget of the groups that were measured. A row that is missing there is an error.
pub fn compare(tables: &[Table]) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    for Budget { group, row, to, at_most, at_least, why } in committed()?.budget {
        let Some(table) = tables.iter().find(|table| table.name == group) else { continue };
        let found = match &to {
            Some(to) => table.ratio(&row, to),
            None => table.row(&row).map(|row| (row.own, row.mad)),
        };
        let (ratio, mad) =
            found.with_context(|| format!("budgets.toml: {group} has no row {row:?} or {to:?}"))?;
        let kept = at_most.is_none_or(|limit| ratio <= limit) && at_least.is_none_or(|limit| ratio >= limit);
        measured.push(Measured { group, row, to, at_most, at_least, ratio, mad, kept, why });
    }
    Ok(measured)
}

/// One line a budget.
pub fn print(measured: &[Measured]) {
    println!("\nbudgets");
    for Measured { group, row, to, at_most, at_least, ratio, mad, kept, why } in measured {
        let limit = match (at_most, at_least) {
            (Some(limit), _) => format!("at most {limit:.2}"),
            (None, Some(limit)) => format!("at least {limit:.2}"),
            (None, None) => "no limit".to_owned(),
        };
        let word = if *kept { "kept" } else { "EXCEEDED" };
        let to = to.as_ref().map_or_else(String::new, |to| format!(" / {to}"));
        println!("  {word:<8} {group}: {row}{to} = {ratio:.2} ± {mad:.2}, {limit} ({why})");
    }
}
