//! `tcpfsm list`: the flows as they are, in columns as `ss` has them.

use std::{
    fmt::Write as _,
    io::{BufWriter, IsTerminal as _, Write as _},
    process::ExitCode,
};

use crate::{
    cli::{ListArgs, ListFormat},
    clock::short_duration,
    control::{
        client::{Answer, Conversation},
        protocol::{FlowLine, Notice, Request, What},
    },
    error::{Error, Result, complain},
    export::{
        owner,
        text::{Width, bytes},
    },
    report::Side,
};

/// What the marks in the table mean; for stderr, and only where a person reads it.
const LEGEND: &str = "* this host's end   ? assumed: that end has not proved it yet   \
                      !STATE what the kernel's own socket says instead   >TIME at least: it began before it was watched";

pub(super) fn list(args: ListArgs) -> Result<ExitCode> {
    let ListArgs { filter, output, socket } = args;
    if matches!(output, ListFormat::Table | ListFormat::Wide) && std::io::stderr().is_terminal() {
        complain!("{LEGEND}   {}", owner::LEGEND);
    }
    let request = Request::new(What::List, filter.filter(Vec::new()));
    let mut conversation = Conversation::start(&socket.socket, &request)?;
    let mut stdout = BufWriter::new(std::io::stdout().lock());
    let failed = || Error::io("write to stdout");
    let mut flows = Vec::new();
    loop {
        match conversation.next_answer()? {
            Some(Answer::Item(line)) => match output {
                ListFormat::Jsonl => stdout.write_all(line.as_bytes()).map_err(failed())?,
                ListFormat::Json | ListFormat::Table | ListFormat::Wide => {
                    flows.push(Answer::parse::<FlowLine>(line)?)
                }
            },
            Some(Answer::Notice(Notice::End(_))) => break,
            Some(Answer::Notice(Notice::Note(words))) => complain!("tcpfsm: {words}"),
            Some(Answer::Notice(Notice::Error(_) | Notice::Lost(_))) => {}
            None => return Err(conversation.hung_up()),
        }
    }
    flows.sort_by_key(|flow| (flow.orig_state, flow.resp_state, flow.resp, flow.orig));
    let text = match output {
        ListFormat::Jsonl => String::new(),
        ListFormat::Json => {
            serde_json::to_string_pretty(&flows).map_err(|error| Error::Answer(error.to_string()))? + "\n"
        }
        ListFormat::Table => table(&flows, false),
        ListFormat::Wide => table(&flows, true),
    };
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(failed())?;
    Ok(ExitCode::SUCCESS)
}

/// Columns as wide as their widest cell.
fn table(flows: &[FlowLine], wide: bool) -> String {
    let mut header = vec!["ORIG", "RESP", "ORIGINATOR", "RESPONDER", "DWELL", "IDLE", "PKTS", "BYTES"];
    if wide {
        header.extend(["AGE", "RTX", "IFACE"]);
    }
    header.push("PROCESS");
    let rows: Vec<Vec<String>> = flows.iter().map(|flow| row(flow, wide)).collect();
    let mut widths: Vec<usize> = header.iter().map(|title| title.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    let header = header.into_iter().map(str::to_owned).collect();
    for row in std::iter::once(&header).chain(&rows) {
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text
}

fn row(flow: &FlowLine, wide: bool) -> Vec<String> {
    let state = |side| {
        let (state, confirmed) = flow.state(side);
        let assumed = if confirmed || state.is_closed() { "" } else { "?" };
        match flow.disagreement() {
            Some((at, kernel)) if at == side => format!("{}{assumed}!{}", state.ss_name(), kernel.ss_name()),
            Some(_) | None => format!("{}{assumed}", state.ss_name()),
        }
    };
    let address = |side, address: std::net::SocketAddr| {
        let local = flow.local.is_some_and(|local| local.includes(side));
        format!("{address}{}", if local { "*" } else { "" })
    };
    // Since the last step of either end.
    let orig = (flow.orig_dwell_ns, flow.orig_dwell_at_least);
    let resp = (flow.resp_dwell_ns, flow.resp_dwell_at_least);
    let time = |(ns, at_least)| format!("{}{}", if at_least { ">" } else { "" }, short_duration(ns));
    let mut row = vec![
        state(Side::Orig),
        state(Side::Resp),
        address(Side::Orig, flow.orig),
        address(Side::Resp, flow.resp),
        time(orig.min(resp)),
        short_duration(flow.idle_ns),
        format!("{}/{}", flow.orig_pkts, flow.resp_pkts),
        format!("{}/{}", bytes(flow.orig_bytes), bytes(flow.resp_bytes)),
    ];
    if wide {
        row.extend([
            time((flow.age_ns, flow.picked_up && flow.age_ns != 0)),
            format!("{}/{}", flow.orig_rtx, flow.resp_rtx),
            flow.iface.to_string(),
        ]);
    }
    let width = if wide { Width::Wide } else { Width::Table };
    row.push(owner::cell(flow.proc.as_ref(), flow.unowned.as_ref(), width));
    row
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::fsm::State;

    use super::*;
    use crate::{owner::Proc, report::Local};

    #[test]
    fn columns_line_up() {
        let flow = FlowLine {
            orig: "10.0.0.1:40001".parse().unwrap(),
            resp: "10.0.0.2:8080".parse().unwrap(),
            iface: "eth0".into(),
            local: Some(Local::Resp),
            orig_state: State::FinWait2,
            resp_state: State::CloseWait,
            orig_confirmed: true,
            resp_confirmed: false,
            orig_dwell_ns: 4_200_000_000,
            resp_dwell_ns: 5_000_000_000,
            orig_dwell_at_least: false,
            resp_dwell_at_least: false,
            idle_ns: 72_000_000,
            age_ns: 192_000_000_000,
            orig_pkts: 6,
            resp_pkts: 5,
            orig_bytes: 120,
            resp_bytes: 4_300,
            orig_rtx: 1,
            resp_rtx: 0,
            picked_up: false,
            facts: vec![],
            proc: Some(Proc {
                pid: 4_711,
                comm: "java".into(),
                unit: Some("app.service".into()),
                ..Proc::default()
            }),
            unowned: None,
            kernel_state: None,
        };
        assert_eq!(
            table(std::slice::from_ref(&flow), false),
            "ORIG        RESP         ORIGINATOR      RESPONDER       DWELL  IDLE  PKTS  BYTES      PROCESS\n\
             FIN-WAIT-2  CLOSE-WAIT?  10.0.0.1:40001  10.0.0.2:8080*  4.20s  72ms  6/5   120B/4.2K  java[4711]\n"
        );
        assert!(
            table(std::slice::from_ref(&flow), true).contains("3m12s  1/0  eth0   java[4711] app.service\n")
        );
        let before = FlowLine {
            orig_dwell_at_least: true,
            resp_dwell_at_least: true,
            picked_up: true,
            ..flow.clone()
        };
        let words = table(&[before], true);
        assert!(words.contains("  >4.20s  72ms  ") && words.contains("  >3m12s  1/0  "), "{words}");
        let differs = FlowLine { kernel_state: Some(State::LastAck), ..flow };
        assert!(table(&[differs], false).contains("CLOSE-WAIT?!LAST-ACK"), "the kernel's view shows");
        assert!(table(&[], false).starts_with("ORIG  RESP"));
    }
}
