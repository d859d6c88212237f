//! Scripts of segments on one flow; [`Line`] says how to read one.

use tcpfsm_common::{
    abi::{FlowRecord, KernelConfig, Verdict},
    flow::FlowKey,
    fsm::{Config, advance},
};

use crate::{
    line::Line,
    support::{self, Kernel, Through, ethernet, segments},
};

struct Script {
    id: &'static str,
    what: &'static str,
    lines: &'static [&'static str],
}

const HANDSHAKE: [&str; 3] = ["C S s0 SS/~SR open", "S SA s0 a1 ~ES/SR", "C A s1 a1 ES/~ES established"];

/// `HS` in a script stands for the handshake.
const SCRIPTS: &[Script] = &[
    Script {
        id: "P01",
        what: "mid-stream pickup, data first: both ends at once",
        lines: &["C PA s5001 a9001 +100 ES/~ES midstream_pickup", "S A s9001 a5101 ES/ES !midstream_pickup"],
    },
    Script {
        id: "P02",
        what: "a bare ACK of an unknown flow shows none: O32 and O33 are measured, the table only reasons; an answer \
               from the other side that fits shows it",
        lines: &["C A s5001 a9001 - no_session", "S A s9001 a5001 ~ES/ES midstream_pickup"],
    },
    Script {
        id: "P02",
        what: "or data from the same side",
        lines: &["C A s5001 a9001 - no_session", "C PA s5001 a9001 +10 ES/~ES midstream_pickup"],
    },
    Script {
        id: "P02",
        what: "or the same side again and again, and its peer stays assumed",
        lines: &[
            "C A s5001 a9001 - no_session",
            "C A s5001 a9101 - no_session",
            "C A s5001 a9201 ES/~ES midstream_pickup",
        ],
    },
    Script {
        id: "P03",
        what: "pickup by FIN: hidden like any stray (O32), and with its acknowledgment all of it is there",
        lines: &["C FA s5001 a9001 - no_session", "S A s9001 a5002 ~F2/CW midstream_pickup"],
    },
    Script { id: "P04", what: "a reset of an unknown flow begins none", lines: &["C R s5001 - no_session"] },
    Script {
        id: "P04",
        what: "nor does one that acknowledges",
        lines: &["C RA s5001 a9001 - no_session", "S RA s9001 a5001 - no_session"],
    },
    Script {
        id: "P05",
        what: "pickup by SYN-ACK: hidden (O10 and O32 are measured) until the client acknowledges it",
        lines: &["S SA s0 a1 - no_session", "C A s1 a1 ES/~ES midstream_pickup", "S A s1 a1 ES/ES"],
    },
    Script {
        id: "P05",
        what: "answered by a reset it was backscatter",
        lines: &["S SA s0 a1 - no_session", "C R s1 - no_session"],
    },
    Script {
        id: "P05",
        what: "alone, however often, it shows nothing",
        lines: &["S SA s0 a1 - no_session", "S SA s0 a1 - synack_rtx", "S SA s0 a1 - synack_rtx"],
    },
    Script {
        id: "P06",
        what: "only the client's side is seen: believed once it has gone on for three segments, which a challenge or \
               a forgery (O35) does not; what its peer has received remains unknown, and whether its last ACK is of data or of \
               a FIN (the table's TIME-WAIT) too",
        lines: &[
            "C S s0 SS/~SR open",
            "C A s1 a1 SS/~SR ack_unseen",
            "C PA s1 a1 +100 SS/~SR ack_unseen data_before_handshake",
            "C PA s101 a1 +100 ES/~ES one_sided !ooo",
            "C FA s201 a1 F1/~CW half_closed",
            "C A s202 a2 F1/~CW",
        ],
    },
    Script {
        id: "P06",
        what: "data of the segments before it is believed was sent all the same",
        lines: &[
            "C S s0 SS/~SR open",
            "C PA s1 a1 +100 SS/~SR ack_unseen",
            "C PA s101 a1 +100 SS/~SR ack_unseen",
            "C PA s201 a1 +100 ES/~ES one_sided !ooo",
            "C PA s301 a51 +100 ES/~ES !ooo !rtx",
            "C FA s401 a51 F1/~CW half_closed",
        ],
    },
    Script {
        id: "P07",
        what: "only the server's side is seen: with data the handshake is known to be done",
        lines: &[
            "S SA s0 a1 - no_session",
            "S PA s1 a1 +100 ~ES/ES midstream_pickup",
            "S PA s101 a51 +100 ~ES/ES",
            "S FA s201 a51 ~CW/F1 half_closed",
        ],
    },
    Script {
        id: "P09",
        what: "the local SYN is seen after the SYN-ACK that answers it",
        lines: &["S SA s0 a1 -", "C S s0 ~ES/SR open !port_reuse", "C A s1 a1 ES/~ES established"],
    },
    Script {
        id: "P13",
        what: "half-open: SYN-RECEIVED until its time is up",
        lines: &["C S s0 SS/~SR open", "S SA s0 a1 ~ES/SR", "S SA s0 a1 ~ES/SR synack_rtx"],
    },
    Script {
        id: "P14",
        what: "SYN scan of a closed port",
        lines: &["C S s0 SS/~SR open", "S RA s0 a1 CL/CL connect_refused"],
    },
    Script {
        id: "P15",
        what: "half-open scan of an open port",
        lines: &["C S s0 SS/~SR open", "S SA s0 a1 ~ES/SR", "C R s1 CL/CL handshake_aborted"],
    },
    Script { id: "P16", what: "FIN scan", lines: &["C F s0 - bad_flags", "S RA s0 a1 - no_session"] },
    Script { id: "P16", what: "NULL scan", lines: &["C 0 s0 - bad_flags", "S RA s0 a0 - no_session"] },
    Script { id: "P16", what: "XMAS scan", lines: &["C FPU s0 - bad_flags", "S RA s0 a1 - no_session"] },
    Script { id: "P16", what: "Maimon scan", lines: &["C FA s0 a9 - no_session", "S R s9 -"] },
    Script { id: "P17", what: "ACK scan", lines: &["C A s0 a9 - no_session", "S R s9 - no_session"] },
    Script {
        id: "P17",
        what: "a stray that a reset disowned does not stand in the way of a connection with the same tuple",
        lines: &[
            "C A s1 a1 - no_session",
            "S R s1 - no_session",
            "S PA s1 a1 +100 ~ES/ES midstream_pickup",
            "C A s1 a101 ES/ES",
        ],
    },
    Script {
        id: "P18",
        what: "SYN-ACK backscatter, answered by a reset",
        lines: &["S SA s0 a1 - no_session", "C R s1 - no_session", "S SA s0 a1 -", "C R s1 - no_session"],
    },
    Script {
        id: "P10",
        what: "after its eviction a flow is a stranger: picked up again in mid-stream",
        lines: &["HS", "C PA s1 a1 +100 ES/~ES", "evict", "S PA s1 a101 +50 ~ES/ES midstream_pickup"],
    },
    Script {
        id: "P25",
        what: "a super-packet with data and FIN: the FIN is behind all of it",
        lines: &["HS", "C FPA s1 a1 +1400 F1/~CW half_closed", "S A s1 a1402 ~F2/CW"],
    },
    Script {
        id: "P36",
        what: "a gap in the capture: acknowledgments of what was not seen are believed when they keep coming (the \
               table says after two; one alone is C35's forgery)",
        lines: &[
            "HS",
            "S A s1 a5001 ES/~ES ack_unseen",
            "S A s1 a5001 ES/~ES ack_unseen",
            "S A s1 a5001 ES/ES capture_gap",
            "C PA s5001 a1 +10 ES/ES",
            "S A s1 a5011 ES/ES !ack_unseen",
        ],
    },
    Script {
        id: "P37",
        what: "the FIN was not seen, but both ends count it",
        lines: &["HS", "S PA s1 a1 +1 ES/ES", "S A s2 a2 ES/ES ack_unseen", "C A s2 a2 F2/~CW fin_unseen"],
    },
    Script {
        id: "reset",
        what: "who goes on sending after \"its\" reset did not send that reset; one segment may have been on its way",
        lines: &[
            "HS",
            "S PA s1 a1 +1 ES/ES",
            "S R s2 CL/CL reset =reset_by_responder",
            "S PA s2 a1 +10 CL/CL !rst_injection_suspected",
            "S PA s12 a1 +10 CL/ES rst_injection_suspected state_rollback =open",
        ],
    },
    Script {
        id: "close reasons",
        what: "by FIN from both ends",
        lines: &[
            "HS",
            "C FA s1 a1 F1/~CW =open",
            "S FA s1 a2 ~TW/LA =open",
            "C A s2 a2 TW/CL closed =finish",
        ],
    },
    Script {
        id: "close reasons",
        what: "by a reset, and from whom",
        lines: &["HS", "C RA s1 a1 CL/CL closed =reset_by_originator"],
    },
    Script {
        id: "close reasons",
        what: "nobody listens",
        lines: &["C S s0 SS/~SR open =open", "S RA s0 a1 CL/CL connect_refused closed =refused"],
    },
    Script {
        id: "two SYNs",
        what: "the second in the window of the first: which is the connection's, the SYN-ACK tells",
        lines: &[
            "C S s0 SS/~SR open",
            "C S s5000 SS/CL syn_diff_isn",
            "S SA s0 a5001 ~ES/SR !synack_bad_ack",
            "C A s5001 a1 ES/~ES established",
            "S PA s1 a5001 +10 ES/ES !ack_unseen",
            "C FA s5001 a11 F1/~CW half_closed",
        ],
    },
    Script {
        id: "two SYNs",
        what: "the second outside of the window, as of another socket that got the port: the first was lost",
        lines: &[
            "C S s0 SS/~SR open",
            "C S s100000 SS/~SR out_of_window",
            "S SA s0 a100001 ~ES/SR !synack_bad_ack",
            "C PA s100001 a1 +10 ES/~ES established !ooo",
            "S A s1 a100011 ES/ES !ack_unseen",
        ],
    },
    Script {
        id: "two SYNs",
        what: "the first is answered, the second was a forgery: nothing of it is left",
        lines: &[
            "C S s0 SS/~SR open",
            "C S s1000 SS/CL syn_diff_isn",
            "S SA s0 a1 ~ES/SR",
            "C A s1 a1 ES/~ES established",
            "C PA s1 a1 +999 ES/~ES",
            "C FA s1001 a1 F1/~ES ooo half_closed",
        ],
    },
    Script {
        id: "two SYNs",
        what: "the second is sent again, and refused: the first was lost, or dropped",
        lines: &[
            "C S s0 SS/~SR open",
            "C S s100000 SS/~SR out_of_window",
            "C S s100000 SS/~SR syn_rtx",
            "S RA s0 a100001 CL/CL connect_refused",
        ],
    },
    Script {
        id: "two SYNs",
        what: "the second comes after the answer to the first, in its server's window: this resets its handshake, and the second is \
               sent again",
        lines: &[
            "C S s0 SS/~SR open",
            "S SA s0 a1 ~ES/SR",
            "C S s5000 ~ES/CL syn_diff_isn",
            "S RA s96 a5001 ~ES/CL",
            "C S s5000 SS/~SR open",
            "S SA s700 a5001 ~ES/SR",
            "C A s5001 a701 ES/~ES established",
        ],
    },
    Script {
        id: "anew",
        what: "the responder is closed, and its peer's reset was an answer to nobody: both are free",
        lines: &[
            "HS",
            "S PA s1 a1 +10 ES/ES",
            "S FA s11 a1 ~CW/F1",
            "C PA s1 a1 +5 ~CW/F1",
            "S R s1 ~CW/CL",
            "C RA s6 a12 CL/CL rst_after_close",
            "C S s700000 SS/~SR open",
            "S SA s500000 a700001 ~ES/SR",
            "C A s700001 a500001 ES/~ES established",
        ],
    },
    Script {
        id: "anew",
        what: "the same, and that reset was not seen",
        lines: &[
            "HS",
            "S PA s1 a1 +10 ES/ES",
            "S FA s11 a1 ~CW/F1",
            "C PA s1 a1 +5 ~CW/F1",
            "S R s1 ~CW/CL",
            "C S s700000 SS/~SR open port_reuse",
            "S SA s500000 a700001 ~ES/SR",
        ],
    },
    Script {
        id: "anew",
        what: "a SYN and what seems to answer it may both be forged, without any number guessed: they move nothing",
        lines: &[
            "HS",
            "S PA s1 a1 +50 ES/ES",
            "C A s1 a51 ES/ES",
            "C S s700000 ES/ES syn_in_established",
            "S SA s500000 a700001 ES/ES synack_odd",
            "S RA s96 a700001 ES/ES",
            "C PA s1 a51 +10 ES/ES !ack_unseen !ooo",
            "C FA s11 a51 F1/~CW",
            "S FA s51 a12 ~TW/LA",
            "C A s12 a52 TW/~CL closed",
        ],
    },
    Script {
        id: "anew",
        what: "an end that is thought to be in the connection before answers a SYN of another",
        lines: &[
            "HS",
            "S PA s1 a1 +10 ES/ES",
            "C PA s1 a11 +100 ES/ES",
            "C R s1 CL/ES rst_out_of_window",
            "C S s700000 SS/ES open syn_on_live_flow",
            "S SA s500000 a700001 ~ES/SR !synack_odd",
            "C A s700001 a500001 ES/~ES established",
        ],
    },
    Script {
        id: "anew",
        what: "a SYN to what is no connection any more is refused like any other, and then sent again",
        lines: &[
            "HS",
            "S FA s1 a1 ~CW/F1",
            "C A s1 a2 CW/~F2",
            "C S s1000 CW/~F2 syn_in_established",
            "S RA s96 a1001 CW/CL",
            "C S s1000 SS/~SR open",
        ],
    },
    Script {
        id: "old FIN",
        what: "a FIN wholly before the left edge is a connection before's, or forged",
        lines: &[
            "HS",
            "C PA s1 a1 +100 ES/~ES",
            "S A s1 a101 ES/ES",
            "C FA s50 a1 ES/ES out_of_window !half_closed",
            "S A s1 a101 ES/ES",
            "S FA s1 a101 ~CW/F1 half_closed",
            "C FA s4294962296 a1 ~CW/F1 out_of_window",
            "C A s101 a2 CW/~F2",
        ],
    },
    Script {
        id: "other FIN",
        what: "a second FIN with another number is not its sender's, but what it acknowledges counts",
        lines: &[
            "HS",
            "C FA s1 a1 F1/~CW",
            "S FA s1 a2 ~TW/LA",
            "C FA s1 a2 +10 TW/CL fin_seq_changed closed",
        ],
    },
    Script {
        id: "other FIN",
        what: "one beyond a hole may be forged: what comes in order is its receiver's",
        lines: &["HS", "C FA s11 a1 F1/~ES ooo half_closed", "C FA s1 a1 F1/~CW", "S A s1 a2 ~F2/CW"],
    },
    Script {
        id: "stalled",
        what: "and the first that it sends after them may be a bare acknowledgment, behind no FIN",
        lines: &[
            "C A s5000 a9001 - no_session",
            "S A s9001 a5001 ~ES/ES midstream_pickup",
            "S PA s9001 a5001 +10 ~ES/ES",
            "C A s5001 a9011 ES/ES !fin_unseen",
            "C PA s5001 a9011 +10 ES/ES !data_after_fin",
        ],
    },
    Script {
        id: "two SYNs",
        what: "one in the window that did not end the handshake, behind cookies say: who sends data is connected",
        lines: &[
            "C S s0 SS/~SR open",
            "S SA s0 a1 ~ES/SR",
            "C S s5000 ~ES/CL syn_diff_isn",
            "C A s1 a1 ES/CL",
            "C PA s1 a1 +10 ES/CL",
            "S PA s1 a11 +10 ES/ES state_rollback",
        ],
    },
    Script {
        id: "flow offload",
        what: "acknowledgments of much that was not seen are believed, whatever the first number was",
        lines: &[
            "HS",
            "S A s1 a1000000000 ES/~ES ack_unseen",
            "S A s1 a1000000000 ES/~ES ack_unseen",
            "S A s1 a1000000000 ES/ES capture_gap",
            "S A s1 a2000000000 ES/ES",
            "S A s1 a2000000000 ES/ES",
            "S A s1 a2000000000 ES/ES",
            "S A s1 a3000000000 ES/ES !ack_too_old",
            "S A s1 a3000000000 ES/ES !ack_too_old",
            "S A s1 a3000000000 ES/ES !ack_too_old",
            "S FA s1 a3000000000 ~CW/F1 !ack_too_old",
        ],
    },
    Script {
        id: "stalled",
        what: "a connection that is met while its window is closed: probes are one behind, and known by what answers them",
        lines: &[
            "C A s5000 a9001 - no_session",
            "S A s9001 a5001 w0 ~ES/ES midstream_pickup zero_window !ack_unseen",
            "C A s5000 a9001 ES/ES zero_window_probe !ack_unseen",
            "S A s9001 a5001 w0 ES/ES !ack_unseen",
            "C A s5000 a9001 ES/ES zero_window_probe",
            "S A s9001 a5001 ES/ES !ack_unseen",
            "C PA s5001 a9001 +10 ES/ES !ooo !rtx",
        ],
    },
    Script {
        id: "unproved",
        what: "what does not acknowledge the FIN does not show that it has arrived",
        lines: &["HS", "S A s1 a1 ES/ES", "C FA s1 a1 F1/~CW", "S PA s1 a1 +10 F1/~CW", "S A s11 a2 ~F2/CW"],
    },
    Script {
        id: "abort",
        what: "a server with Fast Open aborts before the handshake is complete",
        lines: &["C S s0 +20 SS/~SR syn_data", "S SA s0 a21 ~ES/SR tfo_accepted", "S RA s1 a21 CL/CL"],
    },
    Script {
        id: "abort",
        what: "behind a window that has closed in front of what was sent, with the number of its edge",
        lines: &["HS", "S PA s1 a1 +100 ES/ES", "C A s1 a1 w0 ES/ES zero_window", "S RA s1 a1 ES/CL"],
    },
    Script {
        id: "no SACK",
        what: "where SACK was not agreed on, the edge of what lies beyond a hole is no exact number",
        lines: &["HS", "C PA s101 a1 +10 ES/~ES ooo", "C R s111 ES/~ES rst_inexact"],
    },
    Script {
        id: "too old",
        what: "nothing that acknowledges less than the SYN is taken",
        lines: &["HS", "C FA s1 a0 ES/~ES ack_too_old", "C PA s1 a1 +10 ES/~ES !rtx"],
    },
    Script {
        id: "two SYNs",
        what: "the answer to the second is refused, as by a half-open scan",
        lines: &[
            "C S s0 SS/~SR open",
            "C S s100000 SS/~SR out_of_window",
            "S SA s0 a100001 ~ES/SR",
            "C R s100001 CL/CL handshake_aborted",
        ],
    },
    Script {
        id: "crossing FINs",
        what: "BSD's stacks put their FIN on the acknowledgment of their peer's: the ACK of their own is on its way, \
               not lost",
        lines: &[
            "HS",
            "C FA s1 a1 F1/~CW half_closed",
            "S FA s1 a1 ~CG/~CG simultaneous_close",
            "S A s2 a2 ~TW/CG",
            "C FA s1 a2 ~TW/~TW fin_rtx !state_rollback",
            "C A s2 a2 TW/~TW",
        ],
    },
    Script {
        id: "crossing FINs",
        what: "with nothing new on it, it says that the ACK was lost",
        lines: &[
            "HS",
            "C FA s1 a1 F1/~CW half_closed",
            "S FA s1 a1 ~CG/~CG simultaneous_close",
            "C A s2 a2 CG/~TW",
            "S A s2 a2 ~TW/TW closed",
            "C FA s1 a2 CG/TW fin_rtx state_rollback",
        ],
    },
    Script {
        id: "P38",
        what: "the window scale is unknown: 300 kB ahead is taken to be in the window",
        lines: &[
            "C PA s5001 a9001 +100 ES/~ES midstream_pickup",
            "S A s9001 a5101 w1000 ES/ES",
            "C PA s305101 a9001 +100 ES/ES !out_of_window ooo",
        ],
    },
    Script {
        id: "O15",
        what: "a handshake that a FIN completes is one all the same",
        lines: &[
            "C S s0 SS/~SR open",
            "S SA s0 a1 ~ES/SR",
            "C FA s1 a1 F1/~CW established half_closed",
            "S A s1 a2 ~F2/CW !established",
        ],
    },
    Script {
        id: "O20b",
        what: "the accept queue is full, and its client has closed: the SYN-ACK sent again says that neither ACK nor FIN came",
        lines: &[
            "HS",
            "C FA s1 a1 F1/~CW half_closed",
            "S SA s0 a1 F1/SR synack_rtx state_rollback",
            "C FA s1 a1 F1/~CW established fin_rtx",
            "S A s1 a2 ~F2/CW",
        ],
    },
    Script {
        id: "O20b",
        what: "but not of a server that has sent data: a late copy of its SYN-ACK says nothing",
        lines: &[
            "HS",
            "S PA s1 a1 +10 ES/ES",
            "C FA s1 a11 F1/~CW half_closed",
            "S SA s0 a1 F1/~CW synack_rtx !state_rollback",
        ],
    },
    Script {
        id: "O23",
        what: "who took the data of a SYN sends its own before the handshake is complete (RFC 7413 §4.2)",
        lines: &[
            "C S s0 +50 SS/~SR open syn_data",
            "S SA s0 a51 ~ES/SR tfo_accepted",
            "S PA s1 a51 +20 ~ES/SR !established !data_before_handshake",
            "S SA s0 a51 ~ES/SR synack_rtx",
            "C A s51 a21 ES/~ES established",
        ],
    },
    Script {
        id: "D04",
        what: "a keepalive may repeat a byte that was acknowledged, which is no retransmission",
        lines: &[
            "HS",
            "C PA s1 a1 +10 ES/~ES",
            "S A s1 a11 ES/ES",
            "C A s10 a1 +1 ES/ES keepalive !rtx !spurious_rtx",
            "C PA s11 a1 +1 ES/ES !keepalive",
            "C PA s11 a1 +1 ES/ES rtx !keepalive",
        ],
    },
    Script {
        id: "D18",
        what: "a SYN with timestamp 0 says nothing of the clock behind it, as with some stacks",
        lines: &[
            "C S s0 t0 SS/~SR open",
            "S SA s0 a1 t7 ~ES/SR",
            "C A s1 a1 t4000000000 ES/~ES established !paws",
            "C PA s1 a1 +10 t3999999999 ES/~ES paws",
        ],
    },
    Script {
        id: "D18",
        what: "a clock goes on while nothing but keepalives is sent, and may turn half over",
        lines: &[
            "C S s0 t1 SS/~SR open",
            "S SA s0 a1 t1 ~ES/SR",
            "C A s1 a1 t2 ES/~ES established",
            "S A s1 a1 t2 ES/ES",
            "C A s0 a1 t2000000000 ES/ES keepalive !paws",
            "C PA s1 a1 +10 t4000000000 ES/ES !paws",
            "S A s1 a11 t3 ES/ES",
        ],
    },
    Script {
        id: "C19",
        what: "TIME-WAIT takes no SYN with an older timestamp, whatever its number (Linux, RFC 6191)",
        lines: &[
            "C S s0 t100 SS/~SR open",
            "S SA s0 a1 t50 ~ES/SR",
            "C A s1 a1 t101 ES/~ES established",
            "S FA s1 a1 t51 ~CW/F1 half_closed",
            "C FA s1 a2 t102 LA/~TW",
            "S A s2 a2 t52 CL/TW closed",
            "C S s100000 t90 SS/TW open tw_syn_old !tw_reuse",
        ],
    },
    Script {
        id: "P06",
        what: "its peer is believed when it is seen at last, however much was sent before",
        lines: &[
            "C S s0 SS/~SR open",
            "C PA s1 a1 +100 SS/~SR ack_unseen",
            "C PA s101 a1 +100 SS/~SR ack_unseen",
            "C PA s201 a1 +100 ES/~ES one_sided",
            "C PA s1500000000 a1 +10 ES/~ES",
            "C PA s3000000000 a1 +10 ES/~ES",
            "S PA s1 a3000000010 +10 ES/ES !ack_unseen",
            "C FA s3000000010 a11 F1/~CW half_closed",
        ],
    },
    Script {
        id: "L01",
        what: "data sent again for nothing is newer than the FIN that it overtakes: the FIN counts (live sockets)",
        lines: &[
            "HS",
            "C PA s1 a1 +100 t5 ES/~ES",
            "S A s1 a101 t1 ES/ES",
            "C PA s1 a1 +50 t9 ES/ES spurious_rtx",
            "C FA s101 a1 t5 F1/~CW half_closed !paws",
        ],
    },
    Script {
        id: "L02",
        what: "a SYN that was sent again, and comes when the connection is nearly over (live sockets)",
        lines: &[
            "HS",
            "C FA s1 a1 F1/~CW half_closed",
            "S FA s1 a2 ~TW/LA",
            "C S s0 ~TW/LA syn_in_established !open",
            "S A s2 a2 ~TW/LA",
            "C A s2 a2 TW/CL closed",
        ],
    },
    Script {
        id: "L02",
        what: "or when its receiver is in TIME-WAIT",
        lines: &[
            "HS",
            "S FA s1 a1 ~CW/F1 half_closed",
            "C FA s1 a2 LA/~TW",
            "S A s2 a2 CL/TW closed",
            "C S s0 CL/TW syn_in_established !open",
        ],
    },
];

#[test]
fn scripts_are_met_by_the_machine() {
    let families = [segments::Family::V4, segments::Family::V6];
    let played = SCRIPTS.iter().flat_map(|script| families.map(|family| play(script, family, 0, None)));
    all_met(played.collect());
    println!("{} scripts, both families", SCRIPTS.len());
}

#[test]
fn scripts_are_met_by_the_kernel_programs() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    let mut played = Vec::new();
    for (network, script) in (1..).zip(SCRIPTS) {
        // An eviction here takes a full map, see `crowds`.
        if script.lines.contains(&"evict") {
            continue;
        }
        for family in [segments::Family::V4, segments::Family::V6] {
            played.push(play(script, family, network, Some(&mut kernel)));
        }
    }
    all_met(played);
}

fn all_met(played: Vec<Result<(), String>>) {
    let failures: Vec<_> = played.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{} scripts are not met:\n{}", failures.len(), failures.join("\n"));
}

/// P35: the same addresses and ports on two networks are two flows where the scope says so, and one where not.
#[test]
fn a_scope_keeps_equal_tuples_apart() {
    crate::needs_kernel!();
    let packet = Line::parse("C S s0 SS/~SR").packet(segments::Family::V4, 0, 1);
    let (FlowKey::V4(key), ..) = segments::parse(&packet) else { unreachable!() };
    static CONFIG: KernelConfig = KernelConfig { scope: 7, ..KernelConfig::NONE };
    let mut kernel = Kernel::configured(&CONFIG);
    kernel.run(Through::Xdp, &ethernet(&packet));
    let scoped = |scope| FlowKey::V4(tcpfsm_common::flow::FlowKey4 { scope, ..key });
    assert!(kernel.record(&scoped(7)).is_some(), "P35: not under its own scope");
    assert!(kernel.record(&scoped(0)).is_none(), "P35: under another's");
}

fn play(
    script: &Script,
    family: segments::Family,
    network: u32,
    mut kernel: Option<&mut Kernel>,
) -> Result<(), String> {
    let Script { id, what, lines } = script;
    let mut record = FlowRecord::default();
    let lines: Vec<&str> = lines.iter().flat_map(|&line| expand(line)).collect();
    for (number, text) in (1..).zip(lines) {
        if text == "evict" {
            record = FlowRecord::default();
            continue;
        }
        let line = Line::parse(text);
        let at = format!("{id} ({what}), {family:?}, line {number} `{text}`");
        let packet = line.packet(family, network, number);
        let (key, sender, segment) = segments::parse(&packet);
        let (step, _) = advance(&mut record, sender, &segment, 0, Config::default());
        line.check(&record, step.facts).map_err(|difference| format!("{at}: {difference}"))?;
        if let Some(kernel) = &mut kernel {
            let through = if line.from_client { Through::TcEgress } else { Through::Xdp };
            kernel.run(through, &ethernet(&packet));
            match kernel.record(&key) {
                Some((in_kernel, _)) => {
                    assert_eq!(support::comparable(&in_kernel), support::comparable(&record), "{at}");
                }
                None => {
                    assert_eq!(
                        Verdict(record.shared.verdict).generation(),
                        0,
                        "{at}: no record in the kernel"
                    );
                    record = FlowRecord::default();
                }
            }
        }
    }
    Ok(())
}

fn expand(line: &'static str) -> Vec<&'static str> {
    if line == "HS" { HANDSHAKE.to_vec() } else { vec![line] }
}
