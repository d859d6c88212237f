//! The kernel object into the kernel: maps of the configured sizes, programs as they are needed.

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{MapData, MapError},
    programs::{
        Program, ProgramError, RawTracePoint, RawTracePointRunOptions, SchedClassifier, TestRun as _, Xdp,
    },
};
use aya_log::EbpfLogger;
use tcpfsm_common::{
    abi::{KernelConfig, LANE_PLACES},
    fsm::State,
};
use tracing::debug;

use super::{attach, bpf_error, chain, names, pod::Raw, probe};
use crate::{
    config::{Config, MapSizes},
    error::{Error, Result},
    logging::LogLevel,
};

/// The object with its maps made; programs are verified when first asked for.
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
}

/// Loads the object.
///
/// # Errors
/// No privileges, an unfit kernel, an object that is missing or does not fit this binary.
pub fn load(object: &[u8], config: &Config) -> Result<Kernel> {
    check(object)?;
    let lanes = lanes();
    let kernel_config = Raw(kernel_config(config, lanes));
    let log_level = config.log_level.kernel();
    let MapSizes { flows4, flows6, embryos4, embryos6, services, events } = config.maps;
    let mut loader = EbpfLoader::new();
    loader
        .override_global(names::CONFIG, &kernel_config, true)
        // Missing when no log statement was compiled in.
        .override_global(aya_log::LEVEL, &log_level, false)
        .map_max_entries(names::EVENTS, events)
        .map_max_entries(names::LANES, lanes * LANE_PLACES)
        .map_max_entries(names::LANES_READ, lanes)
        .map_max_entries(names::SERVICES, services)
        .verifier_log_level(match config.log_level {
            LogLevel::Trace => VerifierLogLevel::VERBOSE | VerifierLogLevel::STATS,
            _ => VerifierLogLevel::STATS,
        });
    for (name, entries) in
        names::FLOW_MAPS.into_iter().zip([flows4, flows6, roomy(embryos4), roomy(embryos6)])
    {
        loader.map_max_entries(name, entries);
    }
    let ebpf = loader.load(object).map_err(|error| load_error(&error))?;
    Ok(Kernel { ebpf })
}

/// Whether there is an object, and this process may and this kernel can load it.
///
/// # Errors
/// Says what is missing.
pub fn check(object: &[u8]) -> Result<()> {
    if object.is_empty() {
        return Err(Error::NoObject);
    }
    probe::check()
}

/// How many entries an embryonic map for so many handshakes is made with. The kernel gives a hash map as many buckets as the
/// next power of two of its entries, so one more than a power of two gets twice as many. A flood fills these maps: then the
/// chains are half as long, and each link is a wait for memory. Flow maps are rarely full.
#[must_use]
pub const fn roomy(flows: u32) -> u32 {
    if flows.is_power_of_two() && flows < 1 << 30 { flows + 1 } else { flows }
}

/// How many CPUs have a lane for their events: those that are there now, and any with a lower number.
fn lanes() -> u32 {
    let online = aya::util::online_cpus().unwrap_or_default();
    online.into_iter().max().map_or(1, |last| last + 1)
}

/// How many handshakes each of so many CPUs may put straight into a flow map in a slot of 2³³ ns: if all of all CPUs hang until they
/// time out, they take an eighth of the smaller map.
fn early(config: &Config, cpus: u32) -> u32 {
    let patience = [State::SynSent, State::SynRecv].map(|state| config.timeouts[state]);
    // Where one never times out, none may go there.
    let [Some(sent), Some(received)] = patience else { return 0 };
    let slots = (sent.max(received).as_nanos() >> 33) + 2;
    let flows = config.maps.flows4.min(config.maps.flows6);
    u32::try_from(u128::from(flows / 8 / cpus.max(1)) / slots).unwrap_or(0)
}

fn kernel_config(config: &Config, lanes: u32) -> KernelConfig {
    let mut flags = 0;
    if !config.pickup {
        flags |= KernelConfig::STRICT;
    }
    // The host's own setting decides how its TIME-WAIT treats resets (RFC 1337).
    if std::fs::read_to_string("/proc/sys/net/ipv4/tcp_rfc1337").is_ok_and(|text| text.trim() == "1") {
        flags |= KernelConfig::RFC1337;
    }
    KernelConfig {
        scope: config.scope,
        flags,
        event_quota: config.event_quota,
        lanes,
        early: early(config, lanes),
    }
}

fn load_error(error: &EbpfError) -> Error {
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error }) => Error::Load {
            what: format!("map {name}"),
            cause: match io_error.raw_os_error() {
                Some(libc::ENOMEM) => {
                    "not enough memory; make it smaller under [maps] in the configuration".into()
                }
                _ => crate::error::describe(io_error),
            },
        },
        EbpfError::MapError(error) => Error::Load { what: "a map".into(), cause: chain(error) },
        error => Error::Object(chain(error)),
    }
}

impl Kernel {
    /// The XDP program, verified.
    pub(super) fn xdp(&mut self) -> Result<&mut Xdp> {
        let program: &mut Xdp = self.program(names::XDP)?;
        if program.fd().is_err() {
            program.load().map_err(|error| program_error(names::XDP, &error))?;
            report_verified(names::XDP, program.info());
        }
        Ok(program)
    }

    /// A classifier, verified.
    pub(super) fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier> {
        let program: &mut SchedClassifier = self.program(name)?;
        if program.fd().is_err() {
            program.load().map_err(|error| program_error(name, &error))?;
            report_verified(name, program.info());
        }
        Ok(program)
    }

    /// A program that is attached nowhere, verified.
    pub(super) fn task(&mut self, name: &'static str) -> Result<()> {
        let program: &mut RawTracePoint = self.program(name)?;
        if program.fd().is_err() {
            program.load().map_err(|error| program_error(name, &error))?;
            report_verified(name, program.info());
        }
        Ok(())
    }

    /// Runs a program that is attached nowhere and was verified before. Unlike those of packets it may be interrupted by
    /// packets on its CPU, however long it runs.
    pub(super) fn run(&self, name: &'static str, what: &'static str) -> Result<()> {
        let program = self.ebpf.program(name).ok_or_else(|| missing(name))?;
        let program: &RawTracePoint = program.try_into().map_err(|error| program_error(name, &error))?;
        match program.test_run(RawTracePointRunOptions::new()) {
            Ok(_) => Ok(()),
            Err(error) => Err(match attach::errno(&error).map(std::io::Error::from_raw_os_error) {
                Some(cause) => bpf_error(what)(&cause),
                None => bpf_error(what)(&error),
            }),
        }
    }

    fn program<'a, T>(&'a mut self, name: &'static str) -> Result<&'a mut T>
    where
        &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).ok_or_else(|| missing(name))?;
        program.try_into().map_err(|error| program_error(name, &error))
    }

    /// Takes a map out of the object.
    pub(super) fn take_map<T>(&mut self, name: &'static str) -> Result<T>
    where
        T: TryFrom<aya::maps::Map, Error = MapError>,
    {
        let map = self.ebpf.take_map(name).ok_or_else(|| missing(name))?;
        T::try_from(map).map_err(|error| Error::Object(format!("map {name}: {}", chain(&error))))
    }

    /// Takes the four flow maps out of the object.
    pub(super) fn take_flow_map(&mut self, name: &'static str) -> Result<MapData> {
        match self.ebpf.take_map(name) {
            Some(aya::maps::Map::LruHashMap(data)) => Ok(data),
            Some(_) => Err(Error::Object(format!("map {name} is no LRU hash map"))),
            None => Err(missing(name)),
        }
    }

    /// Takes an array out of the object, for who reads it in memory.
    pub(super) fn take_array(&mut self, name: &'static str) -> Result<MapData> {
        match self.ebpf.take_map(name) {
            Some(aya::maps::Map::Array(data)) => Ok(data),
            Some(_) => Err(Error::Object(format!("map {name} is no array"))),
            None => Err(missing(name)),
        }
    }

    /// The reader of what the kernel programs log, where they were compiled to log.
    pub fn take_logger(&mut self) -> Option<EbpfLogger<&'static dyn log::Log>> {
        EbpfLogger::init(&mut self.ebpf).ok()
    }
}

fn missing(name: &str) -> Error {
    Error::Object(format!("{name} is missing"))
}

fn program_error(name: &str, error: &ProgramError) -> Error {
    let cause = match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            // The verifier's words are long; people need the last ones, where it gave up.
            let log = verifier_log.to_string();
            debug!("verifier on {name}:\n{log}");
            let last = log.lines().rev().find(|line| is_complaint(line)).unwrap_or_default().trim();
            let refusal = crate::error::describe(io_error);
            if last.is_empty() { refusal } else { format!("{refusal}: {last}") }
        }
        error => chain(error),
    };
    Error::Load { what: format!("program {name}"), cause }
}

/// Whether a line of the verifier's log can be the complaint: not the statistics that end it.
fn is_complaint(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty()
        && !["processed ", "verification time", "stack depth", "peak_states"]
            .iter()
            .any(|s| line.starts_with(s))
}

fn report_verified(name: &str, info: Result<aya::programs::ProgramInfo, ProgramError>) {
    if let Ok(info) = info {
        let instructions = info.verified_instruction_count().unwrap_or(0);
        debug!(
            "{name}: {instructions} instructions verified ({:.1} % of the limit), {} bytes translated",
            f64::from(instructions) / 10_000.0,
            info.size_translated().unwrap_or(0)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StateDuration;

    #[test]
    fn an_empty_object_is_named_before_anything_else() {
        assert!(matches!(load(&[], &Config::default()), Err(Error::NoObject)));
    }

    #[test]
    fn a_power_of_two_gets_another_one_of_buckets() {
        let buckets = |flows: u32| roomy(flows).next_power_of_two();
        assert_eq!((roomy(65_536), buckets(65_536)), (65_537, 131_072));
        assert_eq!((roomy(100_000), buckets(100_000)), (100_000, 131_072));
        assert_eq!(roomy(1 << 31), 1 << 31, "the kernel's own complaint says it best");
    }

    #[test]
    fn handshakes_that_hang_take_an_eighth_of_a_flow_map_at_most() {
        let mut config = Config::default();
        (config.maps.flows4, config.maps.flows6) = (262_144, 131_072);
        let slots = |config: &Config| (config.timeouts[State::SynSent].unwrap().as_nanos() >> 33) as u32 + 2;
        for cpus in [1, 2, 64, 512] {
            let early = early(&config, cpus);
            assert!(early * cpus * slots(&config) <= 131_072 / 8, "{early} on each of {cpus}");
            assert!(early > 0);
        }
        config.timeouts.set(StateDuration { state: State::SynRecv, duration: None });
        assert_eq!(early(&config, 2), 0);
    }

    #[test]
    fn the_complaint_is_not_the_statistics() {
        let log = "12: (71) r1 = *(u8 *)(r2 +0)\nR2 invalid mem access 'scalar'\nprocessed 13 insns\n\n";
        assert_eq!(log.lines().rev().find(|line| is_complaint(line)), Some("R2 invalid mem access 'scalar'"));
    }
}
