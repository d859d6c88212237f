//! A snapshot of every cell of the diagram, and of the graph drawn from it: whoever changes `next` sees here what
//! that changes, and so does whoever reads the change.
//!
//! `TCPFSM_BLESS=1 cargo test -p tcpfsm-common --test fsm_cells` writes the snapshots anew.

use std::{env, fmt::Write as _, fs, path::PathBuf};

use tcpfsm_common::fsm::{Event, State, next};

#[test]
fn every_cell() {
    snapshot("fsm_cells.txt", &table());
}

#[test]
fn the_graph() {
    snapshot("fsm.dot", &dot());
}

/// Events down, states across; a dot where the event moves nothing.
fn table() -> String {
    let event_width = Event::ALL.iter().map(|event| format!("{event:?}").len()).max().unwrap_or_default();
    let widths = State::ALL.map(|state| {
        let targets = Event::ALL.iter().filter_map(|&event| next(state, event)).map(|to| to.ss_name().len());
        targets.chain([state.ss_name().len()]).max().unwrap_or_default()
    });
    let row = |first: &str, cells: [&str; State::ALL.len()]| {
        let mut line = format!("{first:event_width$}");
        for (cell, width) in cells.into_iter().zip(widths) {
            write!(line, "  {cell:width$}").unwrap();
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let mut text = row("", State::ALL.map(State::ss_name));
    for event in Event::ALL {
        let cells = State::ALL.map(|state| next(state, event).map_or(".", State::ss_name));
        text += &row(&format!("{event:?}"), cells);
    }
    text
}

/// One edge from state to state, labelled with every event that takes it. Time runs out everywhere: drawn for
/// TIME-WAIT alone, as in the RFC's figure.
fn dot() -> String {
    let mut text = String::from("digraph tcp {\n  node [shape=box];\n");
    for from in State::ALL {
        for to in State::ALL {
            let labels: Vec<_> = Event::ALL
                .into_iter()
                .filter(|&event| next(from, event) == Some(to))
                .filter(|&event| event != Event::Expired || from == State::TimeWait)
                .map(|event| format!("{event:?}"))
                .collect();
            if !labels.is_empty() {
                let (from, to) = (from.ss_name(), to.ss_name());
                writeln!(text, "  \"{from}\" -> \"{to}\" [label=\"{}\"];", labels.join("\\n")).unwrap();
            }
        }
    }
    text + "}\n"
}

fn snapshot(name: &str, now: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if env::var_os("TCPFSM_BLESS").is_some() {
        fs::write(&path, now).unwrap();
        return;
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differing: Vec<_> = kept
        .lines()
        .zip(now.lines())
        .filter(|(kept, now)| kept != now)
        .map(|(kept, now)| format!("- {kept}\n+ {now}"))
        .collect();
    assert_eq!(
        kept,
        now,
        "{name} is no longer what the diagram says; if that is meant: TCPFSM_BLESS=1\n{}",
        differing.join("\n")
    );
}
