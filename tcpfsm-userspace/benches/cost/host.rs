//! The kernel as far as the programs ask it: maps, the ring, the time.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use tcpfsm_common::abi::{FlowRecord, ServiceRecord};
use zerocopy::IntoBytes as _;

use crate::emulate::{Image, Machine, Tally};

/// Where things are in the machine's memory.
const CONTEXT: u64 = 0x2_0000;
const PACKET: u64 = 0x3_0000;
const RING: u64 = 0x8_0000;
const ELEMENTS: u64 = 0x1000_0000;

/// What a tick of jiffies is, and when it is.
const NOW: u64 = 0x1_2345_0000;

/// Which hook a packet comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Ingress,
    Egress,
}

/// Maps and their elements.
pub struct Host<'a> {
    image: &'a Image,
    machine: Machine<'a>,
    elements: HashMap<(String, Vec<u8>), u64>,
    next: u64,
    pub events: Vec<usize>,
    pub now: u64,
}

impl<'a> Host<'a> {
    pub fn new(image: &'a Image) -> Self {
        Self {
            image,
            machine: Machine::new(image),
            elements: HashMap::new(),
            next: ELEMENTS,
            events: vec![],
            now: NOW,
        }
    }

    pub fn machine(&mut self) -> &mut Machine<'a> {
        &mut self.machine
    }

    /// Sets a variable of the object's.
    pub fn set(&mut self, name: &str, value: &[u8]) -> Result<()> {
        let at = self.image.place(name)?;
        self.machine.write(at, value);
        Ok(())
    }

    /// Puts an element into a map, and says where it lies.
    pub fn put(&mut self, map: &str, key: &[u8], value: &[u8]) -> u64 {
        let at = self.place(map, key);
        self.machine.write(at, value);
        at
    }

    /// The tick of the present.
    pub const fn tick(&self) -> u64 {
        self.now >> 22
    }

    fn place(&mut self, map: &str, key: &[u8]) -> u64 {
        let next = &mut self.next;
        *self.elements.entry((map.into(), key.into())).or_insert_with(|| {
            *next += 1 << 20;
            *next
        })
    }

    /// Sends a packet through a program.
    pub fn packet(&mut self, hook: Hook, frame: &[u8]) -> Result<Tally> {
        let end = (PACKET + frame.len() as u64) as u32;
        let mut context = [0_u32; 48];
        let program = match hook {
            Hook::Xdp => {
                context[..2].copy_from_slice(&[PACKET as u32, end]);
                context[3] = 3;
                "tcpfsm_xdp"
            }
            Hook::Ingress | Hook::Egress => {
                context[0] = frame.len() as u32;
                context[10] = 3;
                context[19] = PACKET as u32;
                context[20] = end;
                if hook == Hook::Ingress { "tcpfsm_ingress" } else { "tcpfsm_egress" }
            }
        };
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.machine.write(PACKET, frame);
        self.machine.write(CONTEXT, &context);
        self.now += 10_000;
        let Self { image, machine, elements, next, events, now } = self;
        machine.run(program, CONTEXT, |machine, helper| {
            let argument = |number| machine.argument(number);
            let key = |machine: &Machine<'_>, map: &str| {
                let len = match map {
                    "FLOWS4" | "EMBRYOS4" => 16,
                    "FLOWS6" | "EMBRYOS6" => 40,
                    "SERVICES" => 24,
                    _ => 4,
                };
                machine.read(machine.argument(2), len)
            };
            Ok(match helper {
                // bpf_map_lookup_elem
                1 => {
                    let map = image.map(argument(1))?;
                    let found = (map.to_owned(), key(machine, map));
                    let is_array = !(map.starts_with("FLOWS") || map.starts_with("EMBRYOS") || map == "SERVICES");
                    if is_array {
                        *elements.entry(found).or_insert_with(|| {
                            *next += 1 << 20;
                            *next
                        })
                    } else {
                        elements.get(&found).copied().unwrap_or(0)
                    }
                }
                // bpf_map_update_elem
                2 => {
                    let map = image.map(argument(1))?;
                    let found = (map.to_owned(), key(machine, map));
                    if elements.contains_key(&found) {
                        return Ok((-17_i64).cast_unsigned());
                    }
                    let len = if map == "SERVICES" { size_of::<ServiceRecord>() } else { size_of::<FlowRecord>() };
                    let value = machine.read(argument(3), len);
                    *next += 1 << 20;
                    elements.insert(found, *next);
                    machine.write(*next, &value);
                    0
                }
                // bpf_map_delete_elem
                3 => {
                    let map = image.map(argument(1))?;
                    elements.remove(&(map.to_owned(), key(machine, map))).context("nothing to remove")?;
                    0
                }
                // bpf_ktime_get_ns, bpf_ktime_get_coarse_ns
                5 | 160 => *now,
                // bpf_skb_load_bytes, bpf_xdp_load_bytes
                26 | 189 => {
                    let (from, len) = (PACKET + argument(2), argument(4) as usize);
                    let bytes = machine.read(from, len);
                    let to = argument(3);
                    machine.write(to, &bytes);
                    0
                }
                // bpf_skb_pull_data
                39 => 0,
                // bpf_jiffies64
                118 => *now >> 22,
                // bpf_ringbuf_reserve
                131 => {
                    events.push(argument(2) as usize);
                    RING
                }
                // bpf_ringbuf_submit, bpf_ringbuf_query
                132 | 134 => 0,
                // bpf_xdp_get_buff_len
                188 => frame.len() as u64,
                other => bail!("helper {other} is not known here"),
            })
        })
    }

    /// Runs one of the floor's programs on a frame whose flow is there.
    pub fn found(&mut self, program: &str, frame: &[u8]) -> Result<Tally> {
        let end = PACKET + frame.len() as u64;
        self.machine.write(PACKET, frame);
        self.machine.write(CONTEXT, [PACKET as u32, end as u32].as_bytes());
        self.machine.run(program, CONTEXT, |_, helper| match helper {
            1 => Ok(ELEMENTS),
            other => bail!("{program} calls helper {other}"),
        })
    }
}
