//! What the programs cost the verifier and the memory: `cargo xtask verifier-stats`.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use serde::Serialize;

use crate::{
    budgets,
    floor::Loaded,
    subject::{Sizes, Subject},
    sys,
};

/// One program on record.
#[derive(Clone, Debug, Serialize)]
struct Program {
    name: String,
    verified: u32,
    instructions: u32,
    jited_bytes: u32,
}

/// One map on record.
#[derive(Clone, Debug, Serialize)]
struct MapSize {
    name: String,
    entries: u32,
    bytes: u64,
}

/// Loads every program, prints the record, and fails when one is over the budget.
pub fn main(object: &[u8], json: bool) -> Result<bool> {
    let budget = budgets::verifier()?.instructions;
    let mut ebpf = Subject::load(object, &Sizes::default())?.into_inner();
    let mut names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    let programs = names.iter().map(|name| program(&mut ebpf, name)).collect::<Result<Vec<_>>>()?;
    let mut maps = ebpf.maps().map(|(name, map)| map_size(name, map)).collect::<Result<Vec<_>>>()?;
    maps.sort_by(|a, b| a.name.cmp(&b.name));
    let over: Vec<_> = programs.iter().filter(|program| program.verified > budget).collect();
    if json {
        let record = serde_json::json!({ "budget": budget, "programs": programs, "maps": maps });
        println!("{}", serde_json::to_string_pretty(&record)?);
    } else {
        println!("{:<18} {:>9} {:>13} {:>8}", "program", "verified", "instructions", "jited");
        for Program { name, verified, instructions, jited_bytes } in &programs {
            let word = if *verified > budget { "  OVER" } else { "" };
            println!("{name:<18} {verified:>9} {instructions:>13} {jited_bytes:>8}{word}");
        }
        println!(
            "budget: {budget} instructions verified a program\n\n{:<18} {:>9} {:>13} {:>9}",
            "map", "entries", "bytes", "each"
        );
        for MapSize { name, entries, bytes } in &maps {
            println!("{name:<18} {entries:>9} {bytes:>13} {:>9}", bytes / u64::from((*entries).max(1)));
        }
    }
    Ok(over.is_empty())
}

fn program(ebpf: &mut Ebpf, name: &str) -> Result<Program> {
    Loaded::from(ebpf, name)?;
    let info = ebpf.program(name).context("program")?.info()?;
    let missing = || format!("the kernel does not say what {name} cost");
    Ok(Program {
        name: name.to_owned(),
        verified: info.verified_instruction_count().with_context(missing)?,
        instructions: info.size_translated().with_context(missing)? / 8,
        jited_bytes: info.size_jitted(),
    })
}

fn map_size(name: &str, map: &Map) -> Result<MapSize> {
    let data = data_of(map).with_context(|| format!("map {name} is of a type that is not expected here"))?;
    Ok(MapSize {
        name: name.to_owned(),
        entries: data.info()?.max_entries(),
        bytes: bytes_of(data.fd().as_fd())?,
    })
}

/// Memory of a map by the kernel's own account.
pub fn map_bytes(map: &Map) -> Result<u64> {
    bytes_of(data_of(map).context("a map of a type that is not expected here")?.fd().as_fd())
}

/// The bytes of a per-CPU array's first element, of all CPUs.
pub fn first_value(map: &Map) -> Result<Vec<u8>> {
    let data = data_of(map).context("a map of a type that is not expected here")?;
    let each = (data.info()?.value_size() as usize).next_multiple_of(8);
    let mut bytes = vec![0; each * sys::cpus()];
    sys::lookup_first(data.fd().as_fd().as_raw_fd(), &mut bytes).context("read the map's first element")?;
    Ok(bytes)
}

fn data_of(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data)
        | Map::PerfEventArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

fn bytes_of(fd: BorrowedFd<'_>) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    match line.and_then(|value| value.trim().parse().ok()) {
        Some(bytes) => Ok(bytes),
        None => bail!("{path} does not say what the map takes"),
    }
}
