//! The machine against the conformance traces: exact on the scripted scenarios, and on the random walks at
//! least as near to the kernel's own sockets as the traces' expectations.

use std::path::PathBuf;

use xtask::conformance::{Score, score};

fn traces(name: &str) -> Option<Score> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance").join(name);
    if !file.exists() {
        println!("skipped: {name} is not there");
        return None;
    }
    let score = score(&file).unwrap_or_else(|error| panic!("{error:#}"));
    println!("{name}: {score}");
    for difference in &score.differences {
        println!("  {difference}");
    }
    Some(score)
}

#[test]
fn scripted_scenarios_are_exact() {
    let Some(score) = traces("scripted.json") else { return };
    assert_eq!(score.traces, 119);
    assert_eq!(score.as_expected, score.compared);
}

#[test]
fn walks_are_as_near_to_the_kernel_as_expected() {
    let Some(score) = traces("walks.json") else { return };
    assert_eq!(score.traces, 80);
    assert!(score.as_kernel >= score.expected_as_kernel);
    assert!(score.finals_as_kernel >= 78);
}
