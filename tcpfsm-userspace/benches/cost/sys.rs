//! What the bench needs of the kernel and no crate wraps: test runs with all their knobs, CPU time, scheduling.

use std::{fs, io, mem, os::fd::RawFd};

const BPF_PROG_TEST_RUN: libc::c_long = 10;

/// `union bpf_attr`, struct `test` (`linux/bpf.h`).
#[derive(Default)]
#[repr(C)]
struct TestAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    spare: u32,
}

/// Runs a program `repeat` times on one frame, which it may change from run to run; gives what it returned last. A program
/// that meets no packets is given none, and runs once.
pub fn test_run(program: RawFd, frame: &[u8], repeat: u32) -> io::Result<u32> {
    let mut attr = TestAttr {
        prog_fd: program.cast_unsigned(),
        data_size_in: u32::try_from(frame.len()).unwrap(),
        data_in: if frame.is_empty() { 0 } else { frame.as_ptr() as u64 },
        repeat,
        ..TestAttr::default()
    };
    // SAFETY: the kernel reads `attr`, whose size is given, and the frame; it writes to `attr` alone.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            (&raw mut attr).cast::<libc::c_void>(),
            mem::size_of::<TestAttr>(),
        )
    };
    if result == 0 { Ok(attr.retval) } else { Err(io::Error::last_os_error()) }
}

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;

/// `union bpf_attr`, struct for element operations (`linux/bpf.h`).
#[repr(C)]
struct ElementAttr {
    map_fd: u64,
    key: u64,
    value: u64,
    flags: u64,
}

/// Reads an array's first element; of a per-CPU array `value` has room for that of every CPU.
pub fn lookup_first(map: RawFd, value: &mut [u8]) -> io::Result<()> {
    let key = 0_u32;
    let mut attr = ElementAttr {
        map_fd: u64::from(map.cast_unsigned()),
        key: (&raw const key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads `attr` and the key, and writes as many bytes to `value` as the caller has room for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_ELEM,
            (&raw mut attr).cast::<libc::c_void>(),
            mem::size_of::<ElementAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn clock(id: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes `time`.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// CPU time of this thread, nanoseconds: what the hypervisor or another thread took away is not in it.
pub fn thread_cpu() -> f64 {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// `CLOCK_MONOTONIC`, nanoseconds.
pub fn now() -> f64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// Puts the calling thread on one CPU, before all ordinary threads there.
pub fn pin(cpu: usize) {
    // SAFETY: `set` and `parameter` are plain data, filled here, read by the calls.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        let on_cpu = libc::sched_setaffinity(0, mem::size_of_val(&set), &raw const set);
        let parameter = libc::sched_param { sched_priority: 1 };
        let first = libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter);
        if on_cpu != 0 || first != 0 {
            eprintln!("warning: not alone on CPU {cpu}: {}", io::Error::last_os_error());
        }
    }
}

/// Takes back what [`pin`] did: any CPU, in turn with everybody.
pub fn unpin() {
    // SAFETY: as in `pin`.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        (0..cpus()).for_each(|cpu| libc::CPU_SET(cpu, &mut set));
        libc::sched_setaffinity(0, mem::size_of_val(&set), &raw const set);
        let parameter = libc::sched_param { sched_priority: 0 };
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameter);
    }
}

/// How many CPUs this machine has.
pub fn cpus() -> usize {
    // Not `available_parallelism`: that counts those on which this thread may run, which is one.
    // SAFETY: the call takes no pointers.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

/// Seconds that the hypervisor took from this machine so far, over all CPUs.
pub fn stolen() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse::<f64>().ok());
    ticks.unwrap_or(0.0) / 100.0
}

/// User and system time of a process so far, in seconds.
pub fn process_cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>()
        / 100.0
}
