//! The kernel as far as the programs ask it, for [`emulate`](crate::emulate): maps, a lane, the time, packets.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use tcpfsm_common::{
    abi::{FlowRecord, LANE_PLACES, LanePlace, ServiceKey, ServiceRecord},
    flow::{FlowKey4, FlowKey6},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::emulate::{Image, Machine, Tally};

/// Where things are in the machine's memory.
const CONTEXT: u64 = 0x2_0000;
const PACKET: u64 = 0x3_0000;
const ELEMENTS: u64 = 0x1000_0000;
/// More than an element takes.
const STEP: u64 = 1 << 20;

/// When the first packet comes; how long before the next. And what a tick is.
const BEGINNING: u64 = 0x1_2345_0000;
const BETWEEN: u64 = 10_000;
const TICK_BITS: u32 = 22;

const EEXIST: u64 = (-17_i64).cast_unsigned();

/// Helpers by number.
pub mod helper {
    pub const MAP_LOOKUP_ELEM: i64 = 1;
    pub const MAP_UPDATE_ELEM: i64 = 2;
    pub const MAP_DELETE_ELEM: i64 = 3;
    pub const KTIME_GET_NS: i64 = 5;
    pub const GET_SMP_PROCESSOR_ID: i64 = 8;
    pub const SKB_LOAD_BYTES: i64 = 26;
    pub const JIFFIES64: i64 = 118;
    pub const KTIME_GET_COARSE_NS: i64 = 160;
}

/// Where a packet is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Ingress,
    Egress,
}

/// A machine with maps.
pub struct Host<'a> {
    image: &'a Image,
    machine: Machine<'a>,
    now: u64,
    world: World,
}

/// What is in the maps.
#[derive(Default)]
struct World {
    elements: HashMap<(String, Vec<u8>), u64>,
    /// How many elements there ever were.
    places: u64,
}

impl World {
    /// Where an element of a map lies, which is made if there is none.
    fn place(&mut self, map: &str, key: Vec<u8>) -> u64 {
        *self.elements.entry((map.to_owned(), key)).or_insert_with(|| {
            self.places += 1;
            ELEMENTS + self.places * STEP
        })
    }
}

/// The size of a hash map's keys and of its values; arrays have none to tell, and all their elements from the start.
fn hash_map(map: &str) -> Option<(usize, usize)> {
    match map {
        "FLOWS4" | "EMBRYOS4" => Some((size_of::<FlowKey4>(), size_of::<FlowRecord>())),
        "FLOWS6" | "EMBRYOS6" => Some((size_of::<FlowKey6>(), size_of::<FlowRecord>())),
        "SERVICES" => Some((size_of::<ServiceKey>(), size_of::<ServiceRecord>())),
        _ => None,
    }
}

impl<'a> Host<'a> {
    pub fn new(image: &'a Image) -> Self {
        Self { image, machine: Machine::new(image), now: BEGINNING, world: World::default() }
    }

    /// Sets one of the object's variables.
    pub fn set(&mut self, name: &str, value: &[u8]) -> Result<()> {
        self.machine.write(self.image.place(name)?, value);
        Ok(())
    }

    /// Puts an element into a map, and says where it lies.
    pub fn put(&mut self, map: &str, key: &[u8], value: &[u8]) -> u64 {
        let at = self.world.place(map, key.to_owned());
        self.machine.write(at, value);
        at
    }

    /// What lies there.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        self.machine.read(at, len)
    }

    /// The time as a tick, and as a clock.
    pub const fn clock(&self) -> [u64; 2] {
        [self.now >> TICK_BITS, self.now]
    }

    /// What was put into the first CPU's lane.
    pub fn lane(&self) -> Vec<LanePlace> {
        let place = |at: u32| {
            let element = self.world.elements.get(&("LANES".to_owned(), at.to_ne_bytes().to_vec()))?;
            let place = LanePlace::read_from_bytes(&self.read(*element, size_of::<LanePlace>())).ok()?;
            (place.number == u64::from(at) + 1).then_some(place)
        };
        (0..LANE_PLACES).map_while(place).collect()
    }

    /// Runs one of the floor's programs on a frame; its map has every flow.
    pub fn look_up(&mut self, program: &str, frame: &[u8]) -> Result<Tally> {
        self.lay_down(Hook::Xdp, frame);
        self.machine.run(program, CONTEXT, |_, called| match called {
            helper::MAP_LOOKUP_ELEM => Ok(ELEMENTS),
            other => bail!("{program} calls helper {other}"),
        })
    }

    /// Sends a packet through the tracker.
    pub fn packet(&mut self, hook: Hook, frame: &[u8]) -> Result<Tally> {
        self.lay_down(hook, frame);
        self.now += BETWEEN;
        let program = match hook {
            Hook::Xdp => "tcpfsm_xdp",
            Hook::Ingress => "tcpfsm_ingress",
            Hook::Egress => "tcpfsm_egress",
        };
        let Self { image, machine, now, world } = self;
        machine.run(program, CONTEXT, |machine, called| help(image, machine, *now, world, called))
    }

    /// Puts a frame into memory, and the context that leads to it.
    fn lay_down(&mut self, hook: Hook, frame: &[u8]) {
        let len = frame.len() as u32;
        let (data, end) = (PACKET as u32, PACKET as u32 + len);
        let mut context = [0_u32; 48];
        if hook == Hook::Xdp {
            // xdp_md: data, data_end, data_meta, ingress_ifindex.
            [context[0], context[1], context[3]] = [data, end, 3];
        } else {
            // __sk_buff: len, ifindex, data, data_end.
            [context[0], context[10], context[19], context[20]] = [len, 3, data, end];
        }
        self.machine.write(PACKET, frame);
        self.machine.write(CONTEXT, context.as_bytes());
    }
}

/// Does what a helper does.
fn help(image: &Image, machine: &mut Machine<'_>, now: u64, world: &mut World, called: i64) -> Result<u64> {
    let [first, second, third, fourth] = machine.arguments();
    Ok(match called {
        helper::MAP_LOOKUP_ELEM => {
            let map = image.map(first)?;
            match hash_map(map) {
                Some((key, _)) => {
                    let element = (map.to_owned(), machine.read(second, key));
                    world.elements.get(&element).copied().unwrap_or(0)
                }
                None => world.place(map, machine.read(second, 4)),
            }
        }
        // The programs put in nothing that is there (BPF_NOEXIST).
        helper::MAP_UPDATE_ELEM | helper::MAP_DELETE_ELEM => {
            let map = image.map(first)?;
            let (key, value) = hash_map(map).with_context(|| format!("{map} is not to be written"))?;
            let element = (map.to_owned(), machine.read(second, key));
            if called == helper::MAP_DELETE_ELEM {
                world.elements.remove(&element).context("nothing to remove")?;
            } else if world.elements.contains_key(&element) {
                return Ok(EEXIST);
            } else {
                let value = machine.read(third, value);
                machine.write(world.place(map, element.1), &value);
            }
            0
        }
        // One CPU is enough.
        helper::GET_SMP_PROCESSOR_ID => 0,
        helper::KTIME_GET_NS | helper::KTIME_GET_COARSE_NS => now,
        helper::SKB_LOAD_BYTES => {
            let bytes = machine.read(PACKET + second, usize::try_from(fourth)?);
            machine.write(third, &bytes);
            0
        }
        helper::JIFFIES64 => now >> TICK_BITS,
        other => bail!("helper {other} is not known here"),
    })
}
