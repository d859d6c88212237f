//! The flows themselves, read in batches: what `tcpfsm list` shows.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{HashMap, Map, MapData, MapError};
use tcpfsm_common::{
    abi::{ByMapAndState, FlowRecord, Verdict},
    flow::{End, FlowKey, FlowKey4, FlowKey6},
};
use tracing::debug;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{batch, bpf_error, chain, loader::Kernel, names, pod::Raw, sys, sys::BatchPosition};
use crate::error::{Error, Result};

/// The four flow maps.
#[derive(Debug)]
pub struct FlowMaps {
    flows4: FlowMap<FlowKey4>,
    flows6: FlowMap<FlowKey6>,
    embryos4: FlowMap<FlowKey4>,
    embryos6: FlowMap<FlowKey6>,
}

impl FlowMaps {
    /// Takes the maps out of the loaded object.
    ///
    /// # Errors
    /// The object lacks one, or it is of another type or size.
    pub fn take(kernel: &mut Kernel) -> Result<Self> {
        let [flows4, flows6, embryos4, embryos6] = names::FLOW_MAPS;
        Ok(Self {
            flows4: FlowMap::take(kernel, flows4)?,
            flows6: FlowMap::take(kernel, flows6)?,
            embryos4: FlowMap::take(kernel, embryos4)?,
            embryos6: FlowMap::take(kernel, embryos6)?,
        })
    }

    /// Name and capacity of each map.
    #[must_use]
    pub fn capacities(&self) -> [(&'static str, u32); 4] {
        let Self { flows4, flows6, embryos4, embryos6 } = self;
        [flows4.capacity(), flows6.capacity(), embryos4.capacity(), embryos6.capacity()]
    }

    /// Hands out every flow, in no order. Flows that come, go or move meanwhile may be missed or be there twice.
    ///
    /// # Errors
    /// A system call failed.
    pub fn for_each(&self, mut take: impl FnMut(FlowKey, &FlowRecord)) -> Result<()> {
        let Self { flows4, flows6, embryos4, embryos6 } = self;
        flows4.for_each(|key, record| take(FlowKey::V4(key), record))?;
        flows6.for_each(|key, record| take(FlowKey::V6(key), record))?;
        embryos4.for_each(|key, record| take(FlowKey::V4(key), record))?;
        embryos6.for_each(|key, record| take(FlowKey::V6(key), record))
    }
}

/// What came of putting a flow into the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is there now.
    New,
    /// The wire has shown it already.
    Known,
    /// There is no room.
    Full,
}

/// Where a walk over the flow maps is, between two batches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    map: usize,
    position: Option<BatchPosition>,
}

impl Cursor {
    /// Whether the next batch is the first.
    #[must_use]
    pub const fn is_at_start(&self) -> bool {
        self.map == 0 && self.position.is_none()
    }
}

impl FlowMaps {
    /// Puts a flow into the map that its states belong in, unless there is one under its key already; books it
    /// if it is there now, as the kernel programs book theirs.
    ///
    /// # Errors
    /// A system call failed.
    pub fn insert_new(
        &self,
        key: &FlowKey,
        record: &FlowRecord,
        came: &mut ByMapAndState,
    ) -> Result<Inserted> {
        let Self { flows4, flows6, embryos4, embryos6 } = self;
        let verdict = Verdict(record.shared.verdict);
        let embryonic = is_in_handshake(record);
        let [came_flows4, came_flows6, came_embryos4, came_embryos6] = came;
        let (inserted, came) = match (key, embryonic) {
            (FlowKey::V4(key), false) => (flows4.insert_new(embryos4, key, record)?, came_flows4),
            (FlowKey::V6(key), false) => (flows6.insert_new(embryos6, key, record)?, came_flows6),
            (FlowKey::V4(key), true) => (embryos4.insert_new(flows4, key, record)?, came_embryos4),
            (FlowKey::V6(key), true) => (embryos6.insert_new(flows6, key, record)?, came_embryos6),
        };
        if inserted == Inserted::New {
            came[verdict.flow_slot()] += 1;
        }
        Ok(inserted)
    }

    /// The flow under this key, if there is one.
    ///
    /// # Errors
    /// A system call failed.
    pub fn find(&self, key: &FlowKey) -> Result<Option<FlowRecord>> {
        let Self { flows4, flows6, embryos4, embryos6 } = self;
        match key {
            FlowKey::V4(key) => Ok(flows4.find(key)?.or(embryos4.find(key)?)),
            FlowKey::V6(key) => Ok(flows6.find(key)?.or(embryos6.find(key)?)),
        }
    }

    /// The next flows whose handshake completed, at most about as many as asked for. After the last the cursor is at the start
    /// again.
    ///
    /// # Errors
    /// A system call failed.
    pub fn walk(&self, cursor: &mut Cursor, count: usize) -> Result<Vec<(FlowKey, FlowRecord)>> {
        let Self { flows4, flows6, embryos4: _, embryos6: _ } = self;
        let mut found = Vec::new();
        let mut take = |key, record: &FlowRecord| {
            if !is_in_handshake(record) {
                found.push((key, *record));
            }
        };
        let next = match cursor.map {
            0 => flows4.walk(cursor.position, count, |key, record| take(FlowKey::V4(key), record))?,
            _ => flows6.walk(cursor.position, count, |key, record| take(FlowKey::V6(key), record))?,
        };
        if next.is_none() {
            cursor.map = (cursor.map + 1) % 2;
        }
        cursor.position = next;
        Ok(found)
    }
}

/// Whether an end's handshake is under way.
fn is_in_handshake(record: &FlowRecord) -> bool {
    let verdict = Verdict(record.shared.verdict);
    [End::Low, End::High].into_iter().any(|end| verdict.state(end).is_embryonic())
}

/// One flow map.
#[derive(Debug)]
struct FlowMap<K> {
    name: &'static str,
    map: HashMap<MapData, Raw<K>, Raw<FlowRecord>>,
    fd: OwnedFd,
    capacity: u32,
}

impl<K: FromBytes + IntoBytes + Immutable + Copy + Default + 'static> FlowMap<K> {
    fn take(kernel: &mut Kernel, name: &'static str) -> Result<Self> {
        let data = kernel.take_flow_map(name)?;
        let misfit = |error: &dyn std::error::Error| Error::Object(format!("map {name}: {}", chain(error)));
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(|error| misfit(&error))?;
        let capacity = data.info().map_err(|error| misfit(&error))?.max_entries();
        let map = HashMap::try_from(Map::LruHashMap(data)).map_err(|error| misfit(&error))?;
        Ok(Self { name, map, fd, capacity })
    }

    const fn capacity(&self) -> (&'static str, u32) {
        (self.name, self.capacity)
    }

    fn for_each(&self, mut take: impl FnMut(K, &FlowRecord)) -> Result<()> {
        let mut take = |key, record: &FlowRecord| {
            if is_flow(record) {
                take(key, record);
            }
        };
        let error = match batch::for_each(self.fd.as_fd(), |key, record| take(key, record)) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // Batch lookup of LRU maps came with Linux 5.6, later than some vendors' 5.x; one by one works anywhere.
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(bpf_error(format!("read map {}", self.name))(&error));
        }
        debug!("no batch lookup: {error}");
        for element in self.map.iter() {
            let (Raw(key), Raw(record)) =
                element.map_err(|error| bpf_error(format!("read map {}", self.name))(&error))?;
            take(key, &record);
        }
        Ok(())
    }

    /// Puts a record in, unless this map or the family's other one has one.
    fn insert_new(&self, other: &Self, key: &K, record: &FlowRecord) -> Result<Inserted> {
        if other.find(key)?.is_some() {
            return Ok(Inserted::Known);
        }
        match sys::insert_new(self.fd.as_fd(), key, record) {
            Ok(()) => Ok(Inserted::New),
            Err(error) => match error.raw_os_error() {
                Some(libc::EEXIST) => Ok(Inserted::Known),
                Some(libc::E2BIG | libc::ENOMEM) => Ok(Inserted::Full),
                _ => Err(bpf_error(format!("write map {}", self.name))(&error)),
            },
        }
    }

    fn find(&self, key: &K) -> Result<Option<FlowRecord>> {
        match self.map.get(&Raw(*key), 0) {
            Ok(Raw(record)) => Ok(Some(record).filter(is_flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(bpf_error(format!("read map {}", self.name))(&error)),
        }
    }

    /// One batch from a position on; gives where the next one begins.
    fn walk(
        &self,
        from: Option<BatchPosition>,
        count: usize,
        mut take: impl FnMut(K, &FlowRecord),
    ) -> Result<Option<BatchPosition>> {
        let mut keys = vec![K::default(); count];
        let mut records = vec![FlowRecord::default(); count];
        loop {
            match sys::lookup_batch(self.fd.as_fd(), from, &mut keys, &mut records) {
                Ok(batch) => {
                    for (key, record) in keys.iter().zip(&records).take(batch.count) {
                        if is_flow(record) {
                            take(*key, record);
                        }
                    }
                    return Ok(batch.next);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && keys.len() < 1 << 20 => {
                    keys.resize(keys.len() * 2, K::default());
                    records.resize(keys.len(), FlowRecord::default());
                }
                Err(error) => return Err(bpf_error(format!("read map {}", self.name))(&error)),
            }
        }
    }
}

/// Whether a record stands for a flow: not one that moved to another map, nor a stray segment.
fn is_flow(record: &FlowRecord) -> bool {
    !Verdict(record.shared.verdict).has(Verdict::GONE | Verdict::CANDIDATE)
}
