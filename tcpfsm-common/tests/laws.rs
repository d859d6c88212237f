//! What must hold whatever is sent: of the parser for any bytes, of the machine for any segment.
//!
//! Two kinds of input: anything at all (`any`), for what must never fail; and talks, two ends that mostly say what a
//! stack would say, for what must hold of flows that can come about.

mod laws {
    pub(crate) mod machine;
    pub(crate) mod parser;
    mod sweep;
    pub(crate) mod talk;
}
