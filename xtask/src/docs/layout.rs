//! Where each field of a boundary type lies. There is no padding (zerocopy proves it), so offsets are sums.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use tcpfsm_common::abi::{
    ClosedEvent, Correction, Counters, DWELL_BUCKETS, EmbryoFilter, Evidence, FILTER_SLOTS, FLOW_MAPS,
    FlowEvent, FlowRecord, KernelConfig, LATENCY_BUCKETS, LanePlace, LaneRead, STATE_SLOTS, ServiceKey,
    ServiceRecord, Shared, StuckEvent, SweepReport, SweepRequest,
};
use tcpfsm_common::flow::{FlowKey4, FlowKey6};

use super::markdown;
use super::source::items;

/// Every type that has a table: its file and its size as the compiler has it.
const TYPES: [(&str, &str, usize); 19] = [
    ("FlowKey4", "flow.rs", size_of::<FlowKey4>()),
    ("FlowKey6", "flow.rs", size_of::<FlowKey6>()),
    ("FlowRecord", "abi/record.rs", size_of::<FlowRecord>()),
    ("Shared", "abi/record.rs", size_of::<Shared>()),
    ("Evidence", "abi/record.rs", size_of::<Evidence>()),
    ("FlowEvent", "abi/event.rs", size_of::<FlowEvent>()),
    ("ClosedEvent", "abi/event.rs", size_of::<ClosedEvent>()),
    ("StuckEvent", "abi/event.rs", size_of::<StuckEvent>()),
    ("LanePlace", "abi/lane.rs", size_of::<LanePlace>()),
    ("LaneRead", "abi/lane.rs", size_of::<LaneRead>()),
    ("EmbryoFilter", "abi/filter.rs", size_of::<EmbryoFilter>()),
    ("ServiceKey", "abi/service.rs", size_of::<ServiceKey>()),
    ("ServiceRecord", "abi/service.rs", size_of::<ServiceRecord>()),
    ("Correction", "abi/correction.rs", size_of::<Correction>()),
    ("Counters", "abi/counter.rs", size_of::<Counters>()),
    ("KernelConfig", "abi/config.rs", size_of::<KernelConfig>()),
    ("SweepRequest", "abi/sweep.rs", size_of::<SweepRequest>()),
    ("SweepReport", "abi/sweep.rs", size_of::<SweepReport>()),
    ("SeqNum", "seq.rs", 4),
];

/// The fields of a type, with offset and size.
pub(super) fn table(root: &Path, name: &str) -> Result<String> {
    let Some((_, file, size)) = TYPES.into_iter().find(|(known, ..)| *known == name) else {
        bail!("no layout is known of {name:?}");
    };
    let fields = items(root, &format!("tcpfsm-common/src/{file}"), &format!("struct {name}"))?;
    let mut offset = 0;
    let mut rows = Vec::new();
    for field in fields {
        let bytes = size_of_type(&field.kind).with_context(|| format!("{name}.{}", field.name))?;
        let name = format!("`{}`", field.name);
        rows.push(vec![
            offset.to_string(),
            bytes.to_string(),
            name,
            format!("`{}`", field.kind),
            field.words,
        ]);
        offset += bytes;
    }
    ensure!(offset == size, "{name}: the fields add up to {offset} bytes, the type has {size}");
    let table = markdown(&["offset", "bytes", "field", "type", "meaning"], &rows);
    Ok(format!("`{name}`, {size} bytes:\n\n{table}"))
}

fn size_of_type(kind: &str) -> Result<usize> {
    if let Some((element, count)) =
        kind.strip_prefix('[').and_then(|kind| kind.strip_suffix(']')?.rsplit_once("; "))
    {
        return Ok(size_of_type(element)? * length(count)?);
    }
    match kind {
        "u8" => Ok(1),
        "u16" => Ok(2),
        "u32" => Ok(4),
        "u64" => Ok(8),
        _ => match TYPES.into_iter().find(|(name, ..)| *name == kind) {
            Some((.., size)) => Ok(size),
            None => bail!("unknown type {kind}"),
        },
    }
}

fn length(count: &str) -> Result<usize> {
    match count {
        "STATE_SLOTS" => Ok(STATE_SLOTS),
        "FLOW_MAPS" => Ok(FLOW_MAPS),
        "DWELL_BUCKETS" => Ok(DWELL_BUCKETS),
        "FILTER_SLOTS" => Ok(FILTER_SLOTS),
        "LATENCY_BUCKETS" => Ok(LATENCY_BUCKETS),
        number => number.parse().with_context(|| format!("unknown length {number}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_arrays_have_a_size() {
        assert_eq!(size_of_type("[[u32; 4]; 2]").unwrap(), 32);
        assert_eq!(size_of_type("[[[u64; STATE_SLOTS]; STATE_SLOTS]; 2]").unwrap(), 4_096);
        assert!(size_of_type("String").is_err());
    }

    #[test]
    fn fields_of_every_type_add_up() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (name, ..) in TYPES.into_iter().filter(|(name, ..)| *name != "SeqNum") {
            table(root, name).unwrap();
        }
    }
}
