//! The committed budgets, and whether a run keeps them.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::rig::Table;

const COMMITTED: &str = include_str!("budgets.toml");

/// One budget: the own time of a row at most so many times that of another.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    group: String,
    row: String,
    to: String,
    at_most: f64,
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
    pub to: String,
    pub at_most: f64,
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
    for Budget { group, row, to, at_most, why } in committed()?.budget {
        let Some(table) = tables.iter().find(|table| table.name == group) else { continue };
        let (ratio, mad) = table
            .ratio(&row, &to)
            .with_context(|| format!("budgets.toml: {group} has no row {row:?} or {to:?}"))?;
        measured.push(Measured { kept: ratio <= at_most, group, row, to, at_most, ratio, mad, why });
    }
    Ok(measured)
}

/// One line a budget.
pub fn print(measured: &[Measured]) {
    println!("\nbudgets");
    for Measured { group, row, to, at_most, ratio, mad, kept, why } in measured {
        let word = if *kept { "kept" } else { "EXCEEDED" };
        println!("  {word:<8} {group}: {row} / {to} = {ratio:.2} ± {mad:.2}, at most {at_most:.2} ({why})");
    }
}
