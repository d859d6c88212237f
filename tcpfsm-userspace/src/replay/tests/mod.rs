//! Whole captures, built here, through the whole of replay.

use std::{fmt::Write as _, io::Write as _};

use proptest::prelude::*;

mod build;

use self::build::*;
use super::{
    Failure, Lines, ReplayArgs, Want,
    capture::{Capture, CaptureError, Order},
    output::Format,
    replay,
};

fn output(file: &[u8], want: Want, format: Format) -> String {
    replayed(file, want, format).0
}

/// The output, and how many segments belong to no flow.
fn replayed(file: &[u8], want: Want, format: Format) -> (String, u64) {
    let mut out = Vec::new();
    let mut lines = Lines::new(&mut out, format);
    let args = ReplayArgs {
        per_packet: want == Want::Packets,
        explain: want == Want::Stories,
        ..ReplayArgs::default()
    };
    match replay("test", file, &args, &mut lines) {
        Ok(counts) => {
            lines.flush().unwrap();
            (String::from_utf8(out).unwrap(), counts.strays)
        }
        Err(Failure::Input(error)) => (format!("{error:#}"), 0),
        Err(Failure::Output(error)) => panic!("{error}"),
    }
}

/// A medium that fails in the middle.
struct Broken<'a>(&'a [u8]);

impl std::io::Read for Broken<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        if self.0.is_empty() {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        self.0.read(to)
    }
}

#[test]
fn what_was_read_before_an_error_is_told() {
    let file = raw(&[(true, SYN, 0, 0, 0), (false, SYN | ACK, 0, 1, 0)]);
    let mut out = Vec::new();
    let mut lines = Lines::new(&mut out, Format::Jsonl);
    let Err(Failure::Input(error)) = replay("test", Broken(&file), &ReplayArgs::default(), &mut lines) else {
        panic!("an error of the medium is one")
    };
    assert!(
        error.to_string().contains("input/output error") && !error.to_string().contains("os error"),
        "{error}"
    );
    lines.flush().unwrap();
    assert_eq!(String::from_utf8(out).unwrap().lines().count(), 1);
}

const PLAIN: Kind = KINDS[0];
const RAW: u16 = 101;

fn raw(steps: &[Step]) -> Vec<u8> {
    let frames: Vec<_> =
        steps.iter().map(|&(client, flags, seq, ack, len)| packet(client, flags, seq, ack, len)).collect();
    capture(PLAIN, RAW, &frames)
}

fn connections(file: &[u8]) -> Vec<serde_json::Value> {
    let lines = output(file, Want::Connections, Format::Jsonl);
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `conn_state history` of every connection.
fn summary(steps: &[Step]) -> String {
    let mut text = String::new();
    for line in connections(&raw(steps)) {
        let field = |name: &str| line[name].as_str().unwrap().to_owned();
        write!(text, "{} {};", field("conn_state"), field("history")).unwrap();
    }
    text.pop();
    text
}

#[test]
fn every_kind_of_file_gives_the_same_connection() {
    let frames: Vec<_> = WHOLE.iter().map(|&(c, f, s, a, l)| packet(c, f, s, a, l)).collect();
    let expected = output(&capture(PLAIN, RAW, &frames), Want::Connections, Format::Jsonl);
    for kind in KINDS {
        let found = output(&capture(kind, RAW, &frames), Want::Connections, Format::Jsonl);
        if let Kind::Pcapng { block: 3, .. } = kind {
            // Simple packet blocks have no time.
            assert!(found.contains("1970-01-01T00:00:00.000000Z"), "{kind:?}: {found}");
            assert!(found.contains(r#""history":"ShADadFf""#), "{kind:?}: {found}");
        } else {
            assert_eq!(found, expected, "{kind:?}");
        }
    }
}

#[test]
fn every_link_type_gives_the_same_connection() {
    let headers: &[(u16, &[u8])] = &[
        (0, &[2, 0, 0, 0]),
        (1, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0]),
        (1, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88, 0xa8, 0, 1, 0x81, 0, 0, 5, 8, 0]),
        (9, &[0xff, 3, 0, 0x21]),
        (12, &[]),
        (14, &[]),
        (50, &[0xff, 3, 0, 0x21]),
        (104, &[0x0f, 0, 8, 0]),
        (108, &[0, 0, 0, 2]),
        (113, &[0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0]),
        (228, &[]),
        (276, &[8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    let expected = output(&raw(WHOLE), Want::Connections, Format::Jsonl);
    for (link, header) in headers {
        let frames: Vec<_> = WHOLE
            .iter()
            .map(|&(c, f, s, a, l)| [header, packet(c, f, s, a, l).as_slice()].concat())
            .collect();
        assert_eq!(
            output(&capture(PLAIN, *link, &frames), Want::Connections, Format::Jsonl),
            expected,
            "{link}"
        );
    }
}

#[test]
fn golden_connection_json() {
    assert_eq!(
        output(&raw(WHOLE), Want::Connections, Format::Jsonl),
        concat!(
            r#"{"orig":"10.0.0.1:40001","resp":"10.0.0.2:8080","first_ts":"2026-11-22T10:00:00.000000Z","#,
            r#""last_ts":"2026-11-22T10:00:00.009000Z","duration":0.009,"orig_state":"time_wait","#,
            r#""resp_state":"closed","conn_state":"SF","history":"ShADadFf","orig_pkts":6,"resp_pkts":4,"#,
            r#""orig_bytes":100,"resp_bytes":200,"events":["open","established","half_closed","closed"],"#,
            r#""community_id":"1:vHn3gOuwR6a5v+ZFzNFrqFLA4Uw="}"#,
            "\n"
        )
    );
}

#[test]
fn golden_packet_json() {
    assert_eq!(
        output(&raw(&WHOLE[..4]), Want::Packets, Format::Jsonl),
        concat!(
            r#"{"packet":1,"ts":"2026-11-22T10:00:00.000000Z","orig":"10.0.0.1:40001","resp":"10.0.0.2:8080","dir":"original","#,
            r#""flags":"S","orig_state":"syn_sent","resp_state":"syn_recv","orig_confirmed":true,"resp_confirmed":false,"#,
            r#""events":["open"]}"#,
            "\n",
            r#"{"packet":2,"ts":"2026-11-22T10:00:00.001000Z","orig":"10.0.0.1:40001","resp":"10.0.0.2:8080","dir":"reply","#,
            r#""flags":"SA","orig_state":"established","resp_state":"syn_recv","orig_confirmed":false,"resp_confirmed":true,"#,
            r#""events":[]}"#,
            "\n",
            r#"{"packet":3,"ts":"2026-11-22T10:00:00.002000Z","orig":"10.0.0.1:40001","resp":"10.0.0.2:8080","dir":"original","#,
            r#""flags":"A","orig_state":"established","resp_state":"established","orig_confirmed":true,"resp_confirmed":false,"#,
            r#""events":["established"]}"#,
            "\n",
            r#"{"packet":4,"ts":"2026-11-22T10:00:00.003000Z","orig":"10.0.0.1:40001","resp":"10.0.0.2:8080","dir":"original","#,
            r#""flags":"PA","orig_state":"established","resp_state":"established","orig_confirmed":true,"resp_confirmed":false,"#,
            r#""events":[]}"#,
            "\n",
        )
    );
}

#[test]
fn golden_tables() {
    assert_eq!(
        output(&raw(WHOLE), Want::Connections, Format::Table),
        "\
FIRST                           DURATION ORIGINATOR            RESPONDER             ORIG        RESP        STATE  HISTORY              PACKETS               BYTES EVENTS
2026-11-22T10:00:00.000000Z        0.009 10.0.0.1:40001        10.0.0.2:8080         TIME-WAIT   CLOSED      SF     ShADadFf                 6/4             100/200 open established half_closed closed
"
    );
    assert_eq!(
        output(&raw(&WHOLE[..3]), Want::Packets, Format::Table),
        "\x20PACKET TIME                        ORIGINATOR              RESPONDER             FLAGS ORIG        RESP        EVENTS
      1 2026-11-22T10:00:00.000000Z 10.0.0.1:40001        → 10.0.0.2:8080         S     SYN-SENT    SYN-RECV?   open
      2 2026-11-22T10:00:00.001000Z 10.0.0.1:40001        ← 10.0.0.2:8080         SA    ESTAB?      SYN-RECV
      3 2026-11-22T10:00:00.002000Z 10.0.0.1:40001        → 10.0.0.2:8080         A     ESTAB       ESTAB?      established
"
    );
}

#[test]
fn ipv6_stands_in_brackets() {
    let mut frame = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
    frame.extend([0; 15]);
    frame.push(1);
    frame.extend([0; 15]);
    frame.push(2);
    frame.extend(&packet(true, SYN, 0, 0, 0)[20..]);
    let line = output(&capture(PLAIN, RAW, &[frame]), Want::Packets, Format::Jsonl);
    assert!(line.contains(r#""orig":"[::1]:40001","resp":"[::2]:8080""#), "{line}");
}

#[test]
fn every_conn_state() {
    const C: bool = true;
    const S: bool = false;
    let open = &WHOLE[..3];
    let with = |steps: &[Step]| summary(&[open, steps].concat());
    assert_eq!(summary(&[(C, SYN, 0, 0, 0)]), "S0 S");
    assert_eq!(summary(&[(C, SYN, 0, 0, 0), (S, RST | ACK, 0, 1, 0)]), "REJ Sr");
    assert_eq!(summary(&[(C, SYN, 0, 0, 0), (C, RST, 1, 0, 0)]), "RSTOS0 SR");
    assert_eq!(summary(&[(C, SYN, 0, 0, 0), (C, FIN, 1, 0, 0)]), "SH SF");
    assert_eq!(summary(open), "S1 ShA");
    assert_eq!(summary(WHOLE), "SF ShADadFf");
    assert_eq!(with(&[(C, FIN | ACK, 1, 1, 0)]), "S2 ShAF");
    assert_eq!(with(&[(S, FIN | ACK, 1, 1, 0)]), "S3 ShAf");
    assert_eq!(with(&[(C, RST, 1, 0, 0)]), "RSTO ShAR");
    assert_eq!(with(&[(S, RST, 1, 0, 0)]), "RSTR ShAr");
    // 8080 is a port of servers: what begins there is flipped.
    assert_eq!(summary(&[(S, SYN | ACK, 0, 1, 0), (S, FIN | ACK, 1, 1, 0)]), "SHR ^hf");
    assert_eq!(summary(&[(S, SYN | ACK, 0, 1, 0), (S, RST, 1, 0, 0)]), "RSTRH ^hr");
    assert_eq!(summary(&[(C, ACK, 1, 1, 10), (S, ACK, 1, 11, 0)]), "OTH Da");
}

#[test]
fn letters_of_the_history() {
    const C: bool = true;
    const S: bool = false;
    let with = |steps: &[Step]| summary(&[&WHOLE[..3], steps].concat());
    let data = (C, ACK, 1, 1, 100);
    assert_eq!(with(&[data, data]), "S1 ShADT");
    assert_eq!(
        with(&[[data].as_slice(), &[data; 99]].concat()),
        "S1 ShADTT",
        "the 1st, the 10th, not the 100th"
    );
    assert_eq!(with(&[[data].as_slice(), &[data; 100]].concat()), "S1 ShADTTT");
    // The second segment is missing and yet acknowledged.
    assert_eq!(with(&[data, (C, ACK, 201, 1, 100), (S, ACK, 1, 301, 0)]), "S1 ShADaG");
    // Missing, but filled in time.
    assert_eq!(with(&[(C, ACK, 101, 1, 100), data, (S, ACK, 1, 201, 0)]), "S1 ShADTa");
    assert_eq!(with(&[(C, FIN | RST | ACK, 1, 1, 0)]), "RSTO ShAI");
    assert_eq!(with(&[(C, SYN | FIN | ACK, 1, 1, 0)]), "S2 ShAQ");
    assert_eq!(
        summary(&[(C, SYN, 0, 0, 0), (C, SYN, 0, 0, 0), (C, SYN, 5, 0, 0)]),
        "S0 S;S0 S",
        "another SYN is another connection"
    );
    // A SYN-ACK on its own, then traffic: no scan, so its sender is the responder.
    let mut missed = vec![(S, SYN | ACK, 0, 1, 0), (C, ACK, 1, 1, 0)];
    missed.extend_from_slice(&WHOLE[3..]);
    assert_eq!(summary(&missed), "SF ^hADadFf");
}

#[test]
fn silence_and_time_cut_connections() {
    let frames = [packet(true, SYN, 0, 0, 0), packet(true, SYN, 0, 0, 0)];
    let at = |seconds: [u32; 2]| {
        let mut file = capture(PLAIN, RAW, &[]);
        for (frame, seconds) in frames.iter().zip(seconds) {
            put(&mut file, Order::Little, &[seconds, 0, 40, 40]);
            file.extend(frame);
        }
        connections(&file).len()
    };
    assert_eq!(at([1000, 1003]), 1);
    assert_eq!(at([1000, 1006]), 2, "an attempt that nobody answers is over after 5 s");
    // Times that go back, and absurd ones.
    assert_eq!(at([1003, 1000]), 1);
    assert_eq!(at([u32::MAX, 0]), 1);
    assert_eq!(at([0, u32::MAX]), 2);
}

#[test]
fn what_is_no_capture_is_refused_with_a_remedy() {
    for (bytes, what) in [
        (&b""[..], "an empty file"),
        (b"\x1f\x8b\x08\x00aaaaaaaaaaaaaaaaaaaa", "gzip"),
        (b"hello world, this is a text", "expected pcap or pcapng"),
        (&[0xd4, 0xc3, 0xb2, 0xa1, 0, 0], "the beginning of a pcap header"),
    ] {
        let error = output(bytes, Want::Connections, Format::Table);
        assert!(
            error.contains("cannot replay test") && error.contains(what) && error.contains("tcpdump"),
            "{error}"
        );
    }
}

#[test]
fn a_file_cut_anywhere_gives_what_is_before_the_cut() {
    let frames: Vec<_> = WHOLE[..4].iter().map(|&(c, f, s, a, l)| packet(c, f, s, a, l)).collect();
    for kind in KINDS {
        let whole = capture(kind, RAW, &frames);
        let mut longest = 0;
        for len in 24..=whole.len() {
            let lines = output(&whole[..len], Want::Packets, Format::Jsonl).lines().count();
            assert!(lines >= longest || len < 60, "{kind:?} cut at {len}");
            longest = lines;
        }
        assert_eq!(longest, 4, "{kind:?}");
        // Nor does a damaged byte do harm.
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            output(&damaged, Want::Connections, Format::Jsonl);
        }
    }
}

#[test]
fn a_new_section_forgets_interfaces() {
    let mut file =
        capture(Kind::Pcapng { order: Order::Little, block: 6 }, RAW, &[packet(true, SYN, 0, 0, 0)]);
    file.extend(capture(
        Kind::Pcapng { order: Order::Big, block: 6 },
        228,
        &[packet(false, SYN | ACK, 0, 1, 0)],
    ));
    assert_eq!(output(&file, Want::Packets, Format::Jsonl).lines().count(), 2);
    // A section without interfaces, and a packet that names one.
    let mut bare = Vec::new();
    let mut body = Vec::new();
    put(&mut body, Order::Little, &[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]);
    block(&mut bare, Order::Little, 0x0a0d_0d0a, &body);
    block(&mut bare, Order::Little, 6, &[0; 20]);
    let mut capture = Capture::open(bare.as_slice()).unwrap();
    assert!(matches!(capture.next(), Err(CaptureError::Corrupt(28, _))));
}

#[test]
fn an_unreadable_file_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good.pcap");
    std::fs::File::create(&good).unwrap().write_all(&raw(WHOLE)).unwrap();
    let args = ReplayArgs {
        files: vec![dir.path().join("absent.pcap"), dir.path().to_path_buf(), good],
        output: Format::Jsonl,
        ..ReplayArgs::default()
    };
    let mut out = Vec::new();
    let code = super::run(&args, &mut out).unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::FAILURE));
    assert_eq!(String::from_utf8(out).unwrap().lines().count(), 1);
}

/// A stray has no line of its own; what is picked up from its second segment on, has.
#[test]
fn packets_of_no_flow_have_no_line() {
    let file = raw(&[(true, 0, 100, 0, 0), (true, ACK, 100, 900, 0), (false, ACK, 900, 100, 0)]);
    let lines = output(&file, Want::Packets, Format::Jsonl);
    let [line] = lines.lines().collect::<Vec<_>>()[..] else { panic!("{lines}") };
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["packet"], &line["events"][0]), (&3.into(), &"midstream_pickup".into()), "{line}");
}

proptest! {
    #[test]
    fn no_bytes_do_harm(magic in 0..KINDS.len(), link in prop_oneof![Just(1_u16), Just(101), Just(113), any::<u16>()], bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut file = capture(KINDS[magic], link, std::slice::from_ref(&bytes));
        file.extend(&bytes);
        output(&file, Want::Connections, Format::Jsonl);
        output(&bytes, Want::Packets, Format::Table);
    }

    #[test]
    fn any_segments_in_any_order_have_a_summary(steps in prop::collection::vec((any::<bool>(), 0..64_u8, 0..400_u32, 0..400_u32, 0..300_usize), 0..60)) {
        let file = raw(&steps);
        let lines = connections(&file);
        let packets: u64 = lines.iter().map(|line| line["orig_pkts"].as_u64().unwrap() + line["resp_pkts"].as_u64().unwrap()).sum();
        prop_assert_eq!(packets, steps.len() as u64, "every packet belongs to one connection");
        let (lines, strays) = replayed(&file, Want::Packets, Format::Jsonl);
        prop_assert_eq!(lines.lines().count() as u64 + strays, packets, "a line, or a stray that is counted");
    }
}

/// A client that closes, a server that does not: 90 seconds of it.
fn leak() -> Vec<u8> {
    let steps: &[Step] = &[
        (true, SYN, 0, 0, 0),
        (false, SYN | ACK, 0, 1, 0),
        (true, ACK, 1, 1, 0),
        (true, PSH | ACK, 1, 1, 10),
        (false, ACK, 1, 11, 0),
        (true, FIN | ACK, 11, 1, 0),
        (false, ACK, 1, 12, 0),
    ];
    raw(steps)
}

#[test]
fn an_explanation_has_the_timeline_with_relative_numbers() {
    let text = output(&leak(), Want::Stories, Format::Table);
    for words in [
        "WHAT I SAW",
        "orig -> resp S              0          -      0  #1 orig CLOSED -> SYN-SENT (syn)",
        "resp -> orig SA             0          1      0  #2",
        "orig -> resp FA            11          1      0  #6 orig ESTAB -> FIN-WAIT-1",
        "and 2 further segments with nothing to tell.",
        "WHAT IT MEANS",
        "CLOSE-WAIT: the peer has closed; waiting for the own program to call close().",
        "Neither end is this host's",
    ] {
        assert!(text.contains(words), "{words:?} is missing:\n{text}");
    }
    let json = output(&leak(), Want::Stories, Format::Jsonl);
    let story: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&story["orig_end"]["state"], &story["resp_end"]["state"]),
        (&"fin_wait2".into(), &"close_wait".into())
    );
    assert_eq!(story["timeline"].as_array().unwrap().len(), 5);
    assert_eq!(story["timeline"][4]["packet"], 7);
    assert_eq!((&story["orig_end"]["sent_to"], &story["orig_end"]["acked_to"]), (&12.into(), &12.into()));
}

#[test]
fn a_refused_connection_is_explained_as_such() {
    let steps: &[Step] = &[(true, SYN, 0, 0, 0), (false, RST | ACK, 0, 1, 0)];
    let text = output(&raw(steps), Want::Stories, Format::Table);
    assert!(
        text.contains("connect_refused: Connection requests answered by a reset: nobody listens."),
        "{text}"
    );
    assert!(text.contains("WHAT TO DO") && text.contains("ss -tlnp 'sport = :"), "{text}");
}

#[test]
fn a_long_tale_keeps_its_beginning_and_its_end() {
    let mut steps: Vec<Step> = vec![
        (true, SYN, 0, 0, 0),
        (false, SYN | ACK, 0, 1, 0),
        (true, ACK, 1, 1, 0),
        (true, PSH | ACK, 1, 1, 10),
    ];
    for _ in 0..500 {
        steps.push((true, PSH | ACK, 1, 1, 10));
    }
    steps.push((true, FIN | ACK, 11, 1, 0));
    let json = output(&raw(&steps), Want::Stories, Format::Jsonl);
    let story: serde_json::Value = serde_json::from_str(&json).unwrap();
    let timeline = story["timeline"].as_array().unwrap();
    assert_eq!(timeline.len(), 200);
    assert_eq!(timeline[0]["flags"], "S");
    assert_eq!(timeline[199]["flags"], "FA");
    assert!(story["left_out"].as_u64().unwrap() >= 300, "{}", story["left_out"]);
    let text = output(&raw(&steps), Want::Stories, Format::Table);
    assert!(text.contains("segments that told something are left out here"));
}
