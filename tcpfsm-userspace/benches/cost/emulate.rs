//! A BPF machine that counts what it executes: what a path costs, and whether a change made it shorter, without a clock.
//!
//! It runs a program as it stands in the object, before the kernel translates it. Helpers are the caller's, and are not counted.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// Where the stack ends.
const STACK: u64 = 0x1_0000;
/// No path of interest is longer.
const LIMIT: u64 = 10_000;

/// An instruction.
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    to: usize,
    from: usize,
    offset: i16,
    immediate: i32,
}

/// The instructions of one program in an object.
pub fn program(object: &[u8], name: &str) -> Result<Program> {
    let file = object::File::parse(object).context("read the object")?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
    let symbol = symbol.with_context(|| format!("the object has no program {name}"))?;
    let section = file.section_by_index(symbol.section_index().context("a program without a section")?)?;
    let from = usize::try_from(symbol.address())?;
    let code =
        section.data()?.get(from..from + usize::try_from(symbol.size())?).context("a program cut off")?;
    let instructions = code.chunks_exact(8).map(|bytes| Instruction {
        code: bytes[0],
        to: usize::from(bytes[1] & 15),
        from: usize::from(bytes[1] >> 4),
        offset: i16::from_le_bytes([bytes[2], bytes[3]]),
        immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    });
    Ok(Program(instructions.collect()))
}

/// A program.
pub struct Program(Vec<Instruction>);

/// Memory and registers, and what has been counted.
#[derive(Default)]
pub struct Machine {
    memory: HashMap<u64, u8>,
    registers: [u64; 11],
    executed: u64,
}

impl Machine {
    /// Puts bytes into memory.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        self.memory.extend((at..).zip(bytes.iter().copied()));
    }

    /// What lies there; 0 where nothing was written.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        (at..).take(len).map(|at| self.memory.get(&at).copied().unwrap_or(0)).collect()
    }

    /// Runs a program with its context, and says how many instructions it executed. `helper` is called with the number of a
    /// helper, and gives what that returns.
    pub fn run(
        &mut self,
        program: &Program,
        context: u64,
        mut helper: impl FnMut(i32) -> Result<u64>,
    ) -> Result<u64> {
        (self.registers[1], self.registers[10], self.executed) = (context, STACK, 0);
        let mut at = 0;
        while let Some(instruction) = program.0.get(at) {
            self.executed += 1;
            if self.executed > LIMIT {
                bail!("more than {LIMIT} instructions");
            }
            at = match (instruction.code, instruction.from) {
                (0x95, _) => return Ok(self.executed),
                // A helper's number, not the address of a function.
                (0x85, 0) => {
                    self.registers[0] = helper(instruction.immediate)?;
                    at + 1
                }
                (0x18, _) => {
                    let high = program.0.get(at + 1).context("half an address")?.immediate;
                    let low = u64::from(instruction.immediate.cast_unsigned());
                    self.registers[instruction.to] = low | u64::from(high.cast_unsigned()) << 32;
                    at + 2
                }
                _ if self.step(*instruction).with_context(|| format!("instruction {at}"))? => {
                    at.checked_add_signed(1 + isize::from(instruction.offset)).context("a jump to nowhere")?
                }
                _ => at + 1,
            };
        }
        bail!("the program has no end")
    }

    /// Executes one instruction; says whether it jumps.
    fn step(&mut self, instruction: Instruction) -> Result<bool> {
        let Instruction { code, to, from, offset, immediate } = instruction;
        let wide = matches!(code & 7, 5 | 7);
        let mask = if wide { u64::MAX } else { u64::from(u32::MAX) };
        let operand =
            if code & 8 == 0 { i64::from(immediate).cast_unsigned() } else { self.registers[from] } & mask;
        let place = |register: u64| register.wrapping_add_signed(i64::from(offset));
        let size = [4, 2, 1, 8][usize::from(code >> 3 & 3)];
        match code & 7 {
            1 => {
                let mut bytes = self.read(place(self.registers[from]), size);
                bytes.resize(8, 0);
                self.registers[to] = u64::from_le_bytes(bytes.try_into().unwrap());
            }
            2 | 3 => {
                let value =
                    if code & 7 == 2 { i64::from(immediate).cast_unsigned() } else { self.registers[from] };
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
                    0x40 => value | operand,
                    0x50 => value & operand,
                    0x60 => value << shift,
                    0x70 => value >> shift,
                    0xa0 => value ^ operand,
                    0xb0 => operand,
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
