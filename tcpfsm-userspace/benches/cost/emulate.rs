//! A BPF machine that counts what it executes: what a path costs, and whether a change made it shorter, without a clock.
//!
//! It runs programs as they stand in the object, before the kernel translates them. Helpers are the caller's, and are not counted.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result, bail};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SectionKind,
};

/// Where the stack ends, and what a function has of it.
const STACK: u64 = 0x1_0000;
const FRAME: u64 = 0x200;
/// Where the object's own variables begin, and its maps.
const DATA: u64 = 0x100_0000;
const MAPS: u64 = 0x200_0000;
/// No path of interest is longer.
const LIMIT: u64 = 100_000;

/// An instruction, with every address resolved.
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    to: usize,
    from: usize,
    offset: i16,
    immediate: i64,
}

/// The code of an object and its variables, laid out in one memory.
#[derive(Default)]
pub struct Image {
    code: Vec<Instruction>,
    functions: BTreeMap<usize, String>,
    symbols: HashMap<String, u64>,
    data: Vec<(u64, Vec<u8>)>,
    maps: Vec<String>,
}

impl Image {
    /// Lays out an object.
    pub fn of(object: &[u8]) -> Result<Self> {
        let file = object::File::parse(object).context("read the object")?;
        let mut image = Self::default();
        let mut places: HashMap<SectionIndex, u64> = HashMap::new();
        let mut end = DATA;
        for section in file.sections() {
            match section.kind() {
                SectionKind::Text => {
                    places.insert(section.index(), image.code.len() as u64);
                    image.code.extend(section.data()?.chunks_exact(8).map(Instruction::read));
                }
                SectionKind::Data | SectionKind::ReadOnlyData | SectionKind::UninitializedData
                    if section.name() != Ok(".maps") =>
                {
                    places.insert(section.index(), end);
                    let mut bytes = section.data()?.to_vec();
                    bytes.resize(usize::try_from(section.size())?, 0);
                    end += section.size().next_multiple_of(64);
                    image.data.push((places[&section.index()], bytes));
                }
                _ => {}
            }
        }
        for symbol in file.symbols() {
            let (Ok(name), Some(section)) = (symbol.name(), symbol.section_index()) else { continue };
            if name.is_empty() {
                continue;
            }
            let section = file.section_by_index(section)?;
            if section.name() == Ok(".maps") {
                image.symbols.insert(name.into(), MAPS + image.maps.len() as u64);
                image.maps.push(name.into());
            } else if let Some(place) = places.get(&section.index()) {
                if section.kind() == SectionKind::Text {
                    let at = place + symbol.address() / 8;
                    image.functions.insert(usize::try_from(at)?, name.into());
                    image.symbols.insert(name.into(), at);
                } else {
                    image.symbols.insert(name.into(), place + symbol.address());
                }
            }
        }
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(target) = relocation.target() else { continue };
                let symbol = file.symbol_by_index(target)?;
                let at = usize::try_from(places[&section.index()] + offset / 8)?;
                image.relocate(at, &file, &symbol, &places)?;
            }
        }
        Ok(image)
    }

    fn relocate<'a>(
        &mut self,
        at: usize,
        file: &object::File<'a>,
        symbol: &object::Symbol<'a, '_>,
        places: &HashMap<SectionIndex, u64>,
    ) -> Result<()> {
        let section = symbol.section_index().context("a relocation to nowhere")?;
        let addend = self.code[at].immediate;
        if self.code[at].code == 0x85 {
            let target = (places[&section] + symbol.address() / 8).cast_signed() + addend + 1;
            self.code[at].immediate = target - i64::try_from(at)? - 1;
        } else if file.section_by_index(section)?.name() == Ok(".maps") {
            self.code[at].immediate = self.symbols[symbol.name()?].cast_signed();
            self.code[at + 1].immediate = 0;
        } else {
            let place = places.get(&section).with_context(|| format!("{symbol:?} is nowhere"))?;
            self.code[at].immediate = (place + symbol.address()).cast_signed() + addend;
            self.code[at + 1].immediate = 0;
        }
        Ok(())
    }

    /// Where a function begins, or a variable.
    pub fn place(&self, name: &str) -> Result<u64> {
        self.symbols.get(name).copied().with_context(|| format!("the object has no {name}"))
    }

    /// The name of the map whose address this is.
    pub fn map(&self, address: u64) -> Result<&str> {
        let name = address.checked_sub(MAPS).and_then(|at| self.maps.get(usize::try_from(at).ok()?));
        name.map(String::as_str).with_context(|| format!("no map is at {address:x}"))
    }

    /// The function that holds an instruction.
    pub fn function(&self, at: usize) -> &str {
        self.functions.range(..=at).next_back().map_or("", |(_, name)| plain_name(name))
    }
}

/// The last part of a name as Rust mangles it, which has its length before it; other names as they are.
fn plain_name(name: &str) -> &str {
    let is_last = |at: &usize| {
        let (before, part) = name.split_at(*at);
        before.ends_with(&part.len().to_string()) && !part.starts_with(|first: char| first.is_ascii_digit())
    };
    (1..name.len()).find(is_last).map_or(name, |at| &name[at..])
}

impl Instruction {
    fn read(bytes: &[u8]) -> Self {
        Self {
            code: bytes[0],
            to: usize::from(bytes[1] & 15),
            from: usize::from(bytes[1] >> 4),
            offset: i16::from_le_bytes([bytes[2], bytes[3]]),
            immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]).into(),
        }
    }
}

/// What was executed.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub instructions: u64,
    /// The helpers called, by number.
    pub helpers: Vec<i64>,
    /// How often each instruction was executed.
    pub at: HashMap<usize, u64>,
}

impl Tally {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.instructions += other.instructions;
        self.helpers.extend(&other.helpers);
        for (at, count) in &other.at {
            *self.at.entry(*at).or_default() += count;
        }
    }
}

/// Memory and registers, and what has been counted.
pub struct Machine<'a> {
    image: &'a Image,
    memory: HashMap<u64, u8>,
    registers: [u64; 11],
}

impl<'a> Machine<'a> {
    /// A machine with a program in it.
    pub fn new(image: &'a Image) -> Self {
        let mut machine = Self { image, memory: HashMap::new(), registers: [0; 11] };
        for (at, bytes) in &image.data {
            machine.write(*at, bytes);
        }
        machine
    }

    /// Puts bytes into memory.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        self.memory.extend((at..).zip(bytes.iter().copied()));
    }

    /// What lies there; 0 where nothing was written.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        (at..).take(len).map(|at| self.memory.get(&at).copied().unwrap_or(0)).collect()
    }

    /// What a helper was called with.
    pub const fn arguments(&self) -> [u64; 4] {
        let [_, first, second, third, fourth, ..] = self.registers;
        [first, second, third, fourth]
    }

    /// Runs a program with its context, and says what it executed. `helper` is called with the number of a
    /// helper, and gives what that returns.
    pub fn run(
        &mut self,
        program: &str,
        context: u64,
        mut helper: impl FnMut(&mut Self, i64) -> Result<u64>,
    ) -> Result<Tally> {
        let mut tally = Tally::default();
        (self.registers[1], self.registers[10]) = (context, STACK);
        let mut callers: Vec<(usize, [u64; 5])> = vec![];
        let mut at = usize::try_from(self.image.place(program)?)?;
        while let Some(&instruction) = self.image.code.get(at) {
            tally.instructions += 1;
            *tally.at.entry(at).or_default() += 1;
            if tally.instructions > LIMIT {
                bail!("more than {LIMIT} instructions");
            }
            let jump = |by: i64| at.checked_add_signed(1 + by as isize).context("a jump to nowhere");
            at = match (instruction.code, instruction.from) {
                (0x95, _) => match callers.pop() {
                    Some((back, kept)) => {
                        self.registers[6..].copy_from_slice(&kept);
                        back
                    }
                    None => return Ok(tally),
                },
                // A helper's number, not the address of a function.
                (0x85, 0) => {
                    tally.helpers.push(instruction.immediate);
                    self.registers[0] = helper(self, instruction.immediate)?;
                    at + 1
                }
                (0x85, _) => {
                    callers.push((at + 1, self.registers[6..].try_into().unwrap()));
                    self.registers[10] -= FRAME;
                    jump(instruction.immediate)?
                }
                (0x18, _) => {
                    let high = self.image.code.get(at + 1).context("half an address")?.immediate;
                    self.registers[instruction.to] = if high == 0 {
                        instruction.immediate.cast_unsigned()
                    } else {
                        (instruction.immediate.cast_unsigned() & 0xffff_ffff) | high.cast_unsigned() << 32
                    };
                    at + 2
                }
                _ if self.step(instruction).with_context(|| format!("instruction {at}"))? => {
                    jump(instruction.offset.into())?
                }
                _ => at + 1,
            };
        }
        bail!("the program has no end")
    }

    fn load(&self, at: u64, size: usize) -> u64 {
        let mut bytes = self.read(at, size);
        bytes.resize(8, 0);
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Executes one instruction; says whether it jumps.
    fn step(&mut self, instruction: Instruction) -> Result<bool> {
        let Instruction { code, to, from, offset, immediate } = instruction;
        let wide = matches!(code & 7, 5 | 7);
        let mask = if wide { u64::MAX } else { u64::from(u32::MAX) };
        let operand = if code & 8 == 0 { immediate.cast_unsigned() } else { self.registers[from] } & mask;
        let place = |register: u64| register.wrapping_add_signed(i64::from(offset));
        let size = [4, 2, 1, 8][usize::from(code >> 3 & 3)];
        match code & 7 {
            1 => self.registers[to] = self.load(place(self.registers[from]), size),
            3 if code & 0xe0 == 0xc0 => {
                let at = place(self.registers[to]);
                let (old, operand) = (self.load(at, size), self.registers[from]);
                let new = match immediate {
                    0x00 | 0x01 => old.wrapping_add(operand),
                    0x40 | 0x41 => old | operand,
                    0xf1 if old == self.registers[0] => operand,
                    0xf1 => old,
                    _ => bail!("an operation that is not known here: {instruction:?}"),
                };
                self.write(at, &new.to_le_bytes()[..size]);
                match immediate {
                    0x01 | 0x41 => self.registers[from] = old,
                    0xf1 => self.registers[0] = old,
                    _ => {}
                }
            }
            2 | 3 => {
                let value = if code & 7 == 2 { immediate.cast_unsigned() } else { self.registers[from] };
                self.write(place(self.registers[to]), &value.to_le_bytes()[..size]);
            }
            4 if code & 0xf0 == 0xd0 => {
                let bits = u32::try_from(immediate)?;
                self.registers[to] = self.registers[to].swap_bytes() >> (64 - bits);
            }
            4 | 7 => {
                let shift = operand as u32 & if wide { 63 } else { 31 };
                let value = self.registers[to] & mask;
                let value = match code & 0xf0 {
                    0x00 => value.wrapping_add(operand),
                    0x10 => value.wrapping_sub(operand),
                    0x20 => value.wrapping_mul(operand),
                    0x30 => value.checked_div(operand).unwrap_or(0),
                    0x40 => value | operand,
                    0x50 => value & operand,
                    0x60 => value << shift,
                    0x70 => value >> shift,
                    0x80 => value.wrapping_neg(),
                    0x90 => value.checked_rem(operand).unwrap_or(value),
                    0xa0 => value ^ operand,
                    0xb0 => operand,
                    0xc0 if wide => (value.cast_signed() >> shift).cast_unsigned(),
                    0xc0 => ((value as u32).cast_signed() >> shift).cast_unsigned().into(),
                    _ => bail!("an operation that is not known here: {instruction:?}"),
                };
                self.registers[to] = value & mask;
            }
            5 | 6 => {
                let value = self.registers[to] & mask;
                let signed = |value: u64| {
                    if wide { value.cast_signed() } else { i64::from((value as u32).cast_signed()) }
                };
                return Ok(match code & 0xf0 {
                    0x00 => true,
                    0x10 => value == operand,
                    0x20 => value > operand,
                    0x30 => value >= operand,
                    0x40 => value & operand != 0,
                    0x50 => value != operand,
                    0x60 => signed(value) > signed(operand),
                    0x70 => signed(value) >= signed(operand),
                    0xa0 => value < operand,
                    0xb0 => value <= operand,
                    0xc0 => signed(value) < signed(operand),
                    0xd0 => signed(value) <= signed(operand),
                    _ => bail!("not a path of the program's own: {instruction:?}"),
                });
            }
            _ => bail!("an instruction that is not known here: {instruction:?}"),
        }
        Ok(false)
    }
}
