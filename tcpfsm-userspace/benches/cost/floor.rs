//! The floor programs, and the jig that feeds any program another packet each time.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, RawTracePoint, SchedClassifier, Xdp},
};

use crate::{
    frames::{Layout, Shape},
    plan::{Plan, STEPS, Step},
    sys,
};

/// A plan as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct RawPlan(Plan);

// SAFETY: integers alone, in the C layout, without padding.
unsafe impl Pod for RawPlan {}

/// For which hook a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
    /// For none: it is run, and meets no packets.
    None,
}

/// A program that is loaded.
#[derive(Debug)]
pub struct Loaded {
    pub hook: Hook,
    fd: ProgramFd,
}

impl Loaded {
    pub fn raw(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }

    /// Loads one program of an object.
    pub fn from(ebpf: &mut Ebpf, name: &str) -> Result<Self> {
        let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let failed = || format!("load {name}");
        if let Ok(xdp) = <&mut Xdp>::try_from(&mut *program) {
            if xdp.fd().is_err() {
                xdp.load().with_context(failed)?;
            }
            return Ok(Self { hook: Hook::Xdp, fd: xdp.fd()?.try_clone()? });
        }
        if let Ok(task) = <&mut RawTracePoint>::try_from(&mut *program) {
            if task.fd().is_err() {
                task.load().with_context(failed)?;
            }
            return Ok(Self { hook: Hook::None, fd: task.fd()?.try_clone()? });
        }
        let tc = <&mut SchedClassifier>::try_from(program).with_context(failed)?;
        if tc.fd().is_err() {
            tc.load().with_context(failed)?;
        }
        Ok(Self { hook: Hook::Tc, fd: tc.fd()?.try_clone()? })
    }
}

/// The floor's object file.
#[derive(Debug)]
pub struct FloorObject(Vec<u8>);

impl FloorObject {
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self(fs::read(path).with_context(|| format!("read {}", path.display()))?))
    }

    /// The object as it is.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The floor programs with maps of these sizes.
    pub fn load(&self, flows16: u32, flows40: u32) -> Result<Floor> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("FLOOR16", flows16.max(1)).map_max_entries("FLOOR40", flows40.max(1));
        Ok(Floor { ebpf: loader.load(&self.0).context("load the floor's object")? })
    }

    /// A jig around a program.
    pub fn jig(&self, target: &Loaded, layout: Layout) -> Result<Jig> {
        let mut ebpf = self.load(1, 1)?.ebpf;
        let name = match (layout, target.hook) {
            (Layout::Ipv4, Hook::Xdp) => "vary_ipv4",
            (Layout::Ipv4, Hook::Tc) => "vary_ipv4_tc",
            (Layout::Vlan, Hook::Xdp) => "vary_vlan",
            (Layout::Vlan, Hook::Tc) => "vary_vlan_tc",
            (Layout::Ipv6, Hook::Xdp) => "vary_ipv6",
            (Layout::Ipv6, Hook::Tc) => "vary_ipv6_tc",
            (_, Hook::None) => bail!("that program meets no packets"),
        };
        let program = Loaded::from(&mut ebpf, name)?;
        let mut next = ProgramArray::try_from(ebpf.take_map("NEXT").context("no map NEXT")?)?;
        next.set(0, &target.fd, 0).context("put the measured program behind the jig")?;
        let plan = Array::try_from(ebpf.take_map("PLAN").context("no map PLAN")?)?;
        Ok(Jig { plan, program, _next: next })
    }
}

/// The floor programs.
#[derive(Debug)]
pub struct Floor {
    ebpf: Ebpf,
}

impl Floor {
    pub fn program(&mut self, name: &str) -> Result<Loaded> {
        Loaded::from(&mut self.ebpf, name)
    }

    /// The object itself, to attach its programs.
    pub fn object(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// What the programs counted: misses; by the walk: flows, old ones; events, events lost.
    pub fn seen(&self) -> Result<[u64; 8]> {
        let map: Array<&MapData, [u64; 8]> = Array::try_from(self.ebpf.map("SEEN").context("no map SEEN")?)?;
        Ok(map.get(&0, 0)?)
    }
}

/// Which flows a plan goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// `2^bits` flows, one after the other.
    InOrder { bits: u32 },
    /// `2^bits` flows in an order that looks random, each once in a turn.
    Mixed { bits: u32 },
    /// Each unit a flow never seen before, from this number on.
    Fresh { first: u32 },
}

/// `vary` before one program.
pub struct Jig {
    plan: Array<MapData, RawPlan>,
    program: Loaded,
    _next: ProgramArray<MapData>,
}

impl Jig {
    pub fn program(&self) -> &Loaded {
        &self.program
    }

    /// Begins a script.
    pub fn play(&mut self, flows: Flows, script: &[Step]) -> Result<()> {
        let mut steps = [Step::default(); STEPS];
        if script.is_empty() || script.len() > STEPS {
            bail!("a script has 1 to {STEPS} steps");
        }
        steps[..script.len()].copy_from_slice(script);
        let (mask, turn_shift, mix_shift, first) = match flows {
            Flows::InOrder { bits } => ((1 << bits) - 1, bits, 0, 0),
            Flows::Mixed { bits } => ((1 << bits) - 1, bits, bits.div_ceil(2), 0),
            Flows::Fresh { first } => (u64::MAX, 63, 0, first),
        };
        let steps_used = u32::try_from(script.len())?;
        let plan = Plan {
            unit: 0,
            mask,
            turn_shift,
            mix_shift,
            first,
            step: 0,
            steps: steps_used,
            spare: 0,
            script: steps,
        };
        self.plan.set(0, RawPlan(plan), 0).context("write the plan")
    }

    /// Begins a script on one flow.
    pub fn play_one(&mut self, flow: u32, script: &[Step]) -> Result<()> {
        self.play(Flows::InOrder { bits: 0 }, script)?;
        let mut plan = self.plan.get(&0, 0)?;
        plan.0.first = flow;
        self.plan.set(0, plan, 0).context("write the plan")
    }

    /// Units begun.
    pub fn units(&self) -> Result<u64> {
        Ok(self.plan.get(&0, 0)?.0.unit)
    }

    /// Plays so many packets; checks that the measured program was called.
    pub fn run(&self, shape: Shape, payload: u32, packets: u64) -> Result<()> {
        let frame = shape.frame(payload);
        let mut left = packets;
        while left > 0 {
            let now = u32::try_from(left.min(1 << 20))?;
            let returned = sys::test_run(self.program.raw(), &frame, now).context("test run")?;
            check_called(self.program.hook, returned)?;
            left -= u64::from(now);
        }
        Ok(())
    }
}

/// What `vary` returns itself says that the tail call failed.
pub fn check_called(hook: Hook, returned: u32) -> Result<()> {
    let passed = match hook {
        Hook::Xdp => 2,
        Hook::Tc => u32::MAX,
        Hook::None => 0,
    };
    if returned != passed {
        bail!(
            "the program returned {returned}: the measured program was not called, or does not pass packets on"
        );
    }
    Ok(())
}
