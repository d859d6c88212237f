//! Closed sets of names with their meanings: facts, close reasons, what became of packets, the tracker's health.

use std::path::Path;

use anyhow::{Result, ensure};
use tcpfsm_common::abi::{CloseReason, Health, Outcome};
use tcpfsm_common::fact::{Fact, Facts};
use tcpfsm_common::packet::Skip;

use super::markdown;
use super::source::{Item, items};

const COUNTER: &str = "tcpfsm-common/src/abi/counter.rs";

/// Every fact; a quiet one is counted and makes no event.
pub(super) fn facts(root: &Path) -> Result<String> {
    let items = items(root, "tcpfsm-common/src/fact.rs", "enum Fact")?;
    same(&items, Fact::ALL.map(|fact| format!("{fact:?}")))?;
    let rows: Vec<Vec<String>> = Fact::ALL
        .into_iter()
        .zip(items)
        .map(|(fact, item)| {
            let event = if Facts::QUIET.has(fact) { "counted" } else { "event" };
            vec![(fact as usize).to_string(), format!("`{}`", fact.name()), event.to_owned(), item.words]
        })
        .collect();
    Ok(markdown(&["code", "fact", "reported as", "meaning"], &rows))
}

/// How a flow can have ended.
pub(super) fn close_reasons(root: &Path) -> Result<String> {
    let items = items(root, "tcpfsm-common/src/abi/close_reason.rs", "enum CloseReason")?;
    same(&items, CloseReason::ALL.map(|reason| format!("{reason:?}")))?;
    let rows: Vec<Vec<String>> = CloseReason::ALL
        .into_iter()
        .zip(items)
        .map(|(reason, item)| vec![(reason as u8).to_string(), format!("`{}`", reason.name()), item.words])
        .collect();
    Ok(markdown(&["code", "reason", "meaning"], &rows))
}

/// What became of a packet: the `verdict` label.
pub(super) fn outcomes(root: &Path) -> Result<String> {
    let outcomes = items(root, COUNTER, "enum Outcome")?;
    same(&outcomes, Outcome::ALL.map(|outcome| format!("{outcome:?}")))?;
    let skips = items(root, "tcpfsm-common/src/packet/mod.rs", "enum Skip")?;
    same(&skips, Skip::ALL.map(|skip| format!("{skip:?}")))?;
    let rows: Vec<Vec<String>> = Outcome::names()
        .zip(outcomes.into_iter().chain(skips))
        .enumerate()
        .map(|(code, (name, item))| vec![code.to_string(), format!("`{name}`"), item.words])
        .collect();
    Ok(markdown(&["index", "verdict", "meaning"], &rows))
}

/// What the tracker says of itself.
pub(super) fn health(root: &Path) -> Result<String> {
    let items = items(root, COUNTER, "enum Health")?;
    same(&items, Health::ALL.map(|health| format!("{health:?}")))?;
    let rows: Vec<Vec<String>> = Health::ALL
        .into_iter()
        .zip(items)
        .map(|(health, item)| vec![(health as usize).to_string(), format!("`{health:?}`"), item.words])
        .collect();
    Ok(markdown(&["index", "counter", "meaning"], &rows))
}

/// The source was read right: the same names in the same order as the compiler has them.
fn same<const N: usize>(items: &[Item], names: [String; N]) -> Result<()> {
    let found: Vec<&str> = items.iter().map(|item| item.name.as_str()).collect();
    ensure!(found == names, "the source says {found:?}, the compiler {names:?}");
    Ok(())
}
