//! Events to reports, and reports to whoever listens: a thread of its own, because finding an owner takes time.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::broadcast;

use super::{
    anomaly::anomaly,
    gauges::{Losses, SharedGauges},
    owners::Owners,
    translate::{addresses, conn_closed, orientation, steps, transition},
};
use crate::{
    clock::{Wall, WallClock},
    detect::Finding,
    error::{Error, Result},
    kernel::interfaces::InterfaceNames,
    owner::OwnerLookup,
    report::{Body, Flow, Report, SCHEMA_VERSION, Side},
    source::live::Observation,
};

/// How much of each second may be spent on finding owners.
const OWNER_BUDGET: Duration = Duration::from_millis(200);

/// Events and findings that may wait, however many batches they came in.
const MOST_WAITING: usize = 1 << 18;

/// Where rendered reports go beside the watchers.
pub trait Sink: Send {
    /// Takes one report.
    fn take(&mut self, report: &Report);

    /// A batch is complete: write it out.
    fn flush(&mut self);
}

/// What the engine hands over.
#[derive(Debug)]
enum Notice {
    Events(Vec<Observation>),
    Anomalies(Vec<Finding>),
}

impl Notice {
    const fn len(&self) -> usize {
        match self {
            Self::Events(events) => events.len(),
            Self::Anomalies(findings) => findings.len(),
        }
    }
}

/// The engine's end of the queue.
#[derive(Debug)]
pub struct Publisher {
    queue: Sender<Notice>,
    shared: SharedGauges,
    watchers: broadcast::Sender<Arc<Report>>,
    has_sink: bool,
}

impl Publisher {
    /// Whether anybody listens at all: if not, events need not become reports.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.has_sink || self.watchers.receiver_count() > 0
    }

    /// Hands over events, if there is room for them; never waits.
    pub fn events(&self, events: Vec<Observation>) {
        let count = events.len();
        if self.shared.backlog.events.load(Ordering::Relaxed) + count > MOST_WAITING {
            return Losses::add(&self.shared.losses.queue, count as u64);
        }
        self.hand_over(Notice::Events(events));
    }

    /// Hands over findings; never waits. There is always room: they are few, and what an overloaded host must know.
    pub fn anomalies(&self, findings: Vec<Finding>) {
        self.hand_over(Notice::Anomalies(findings));
    }

    fn hand_over(&self, notice: Notice) {
        let count = notice.len();
        if count == 0 {
            return;
        }
        self.shared.backlog.events.fetch_add(count, Ordering::Relaxed);
        // An error means that the thread is gone, and with it whoever would hear of this.
        let _ = self.queue.send(notice);
    }
}

/// Starts the thread; it ends when the [`Publisher`] is dropped.
///
/// # Errors
/// The system gives no thread.
pub fn start(
    host: Box<dyn OwnerLookup>,
    sink: Option<Box<dyn Sink>>,
    watchers: broadcast::Sender<Arc<Report>>,
    shared: SharedGauges,
) -> Result<(Publisher, JoinHandle<()>)> {
    let (queue, notices) = channel();
    let has_sink = sink.is_some();
    let mut press = Press {
        owners: Owners::new(host, OWNER_BUDGET),
        names: InterfaceNames::default(),
        host: hostname(),
        clock: WallClock::now(),
        seq: 0,
        sink,
        watchers: watchers.clone(),
        shared: Arc::clone(&shared),
    };
    let thread = std::thread::Builder::new()
        .name("publish".into())
        .spawn(move || press.run(&notices))
        .map_err(Error::io("start the publishing thread"))?;
    Ok((Publisher { queue, shared, watchers, has_sink }, thread))
}

/// The name of this host, for reports.
pub(crate) fn hostname() -> Cow<'static, str> {
    rustix::system::uname().nodename().to_string_lossy().into_owned().into()
}

struct Press {
    owners: Owners,
    names: InterfaceNames,
    host: Cow<'static, str>,
    clock: WallClock,
    seq: u64,
    sink: Option<Box<dyn Sink>>,
    watchers: broadcast::Sender<Arc<Report>>,
    shared: SharedGauges,
}

impl Press {
    fn run(&mut self, notices: &Receiver<Notice>) {
        while let Ok(notice) = notices.recv() {
            self.clock = WallClock::now();
            self.names.refresh(Instant::now());
            match notice {
                Notice::Events(events) => {
                    for event in &events {
                        self.event(event);
                        self.done();
                    }
                }
                Notice::Anomalies(findings) => {
                    for finding in &findings {
                        self.anomaly(finding);
                        self.done();
                    }
                }
            }
            if let Some(sink) = &mut self.sink {
                sink.flush();
            }
        }
    }

    /// One at a time: whoever waits for the end sees that it gets on.
    fn done(&self) {
        self.shared.backlog.events.fetch_sub(1, Ordering::Relaxed);
    }

    fn event(&mut self, observation: &Observation) {
        let event = &observation.event;
        let after = event.verdict_after();
        let [orig, resp] = addresses(&event.key(), after);
        let mut steps = steps(event).peekable();
        if steps.peek().is_none() && observation.totals.is_none() {
            return;
        }
        let flow =
            Flow { orig, resp, iface: self.iface(event.ifindex), local: self.owners.local(orig, resp) };
        if event.opens() {
            // Addresses and ports of an earlier connection, which may have been another program's.
            self.owners.forget(&flow);
        }
        let ts = self.clock.at(event.time);
        let states = orientation(after).map(|end| after.state(end));
        for step in steps {
            let mut transition = transition(observation, &step, flow.clone());
            let found = self.owners.owner(&flow, transition.side, states);
            transition.proc = found.proc;
            transition.unowned = found.unowned;
            self.publish(ts, Body::Transition(transition));
        }
        if let Some(totals) = &observation.totals {
            let mut closed = conn_closed(event, totals, flow.clone());
            let found = self.owners.owner(&flow, Side::Resp, states);
            closed.proc = found.proc;
            closed.unowned = found.unowned;
            self.publish(ts, Body::ConnClosed(closed));
        }
        if after.is_closed() {
            self.owners.forget(&flow);
        }
    }

    fn anomaly(&mut self, finding: &Finding) {
        let iface = self.iface(finding.oldest.ifindex);
        let body = Body::Anomaly(anomaly(finding, &mut self.owners, iface, self.clock));
        self.publish(self.clock.at(finding.time), body);
    }

    fn iface(&mut self, index: u32) -> Cow<'static, str> {
        if index == 0 { Cow::Borrowed("") } else { self.names.name(index).to_string().into() }
    }

    fn publish(&mut self, ts: Wall, body: Body) {
        self.seq += 1;
        self.shared.reports.store(self.seq, Ordering::Relaxed);
        let report = Report { v: SCHEMA_VERSION, seq: self.seq, ts, host: self.host.clone(), body };
        if let Some(sink) = &mut self.sink {
            sink.take(&report);
        }
        if self.watchers.receiver_count() > 0 {
            // An error means that the last watcher left just now.
            let _ = self.watchers.send(Arc::new(report));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, net::SocketAddr, sync::Mutex};

    use tcpfsm_common::{flow::End, fsm::State};

    use super::*;
    use crate::{
        owner::{Ownership, Proc},
        pipeline::synthetic::{Conversation, ORIG},
    };

    #[derive(Clone, Default)]
    struct Collected(Arc<Mutex<Vec<Report>>>);

    impl Sink for Collected {
        fn take(&mut self, report: &Report) {
            self.0.lock().unwrap().push(report.clone());
        }

        fn flush(&mut self) {}
    }

    struct ThisHostIsOrig;

    impl OwnerLookup for ThisHostIsOrig {
        fn is_local(&self, address: IpAddr) -> bool {
            address == ORIG.ip()
        }

        fn ownership(&mut self, _: SocketAddr, _: SocketAddr) -> Ownership {
            Proc { pid: 4_711, comm: "java".into(), ..Proc::default() }.into()
        }

        fn kernel_state(&mut self, _: SocketAddr, _: SocketAddr) -> Option<tcpfsm_common::fsm::State> {
            None
        }

        fn degraded(&self) -> Option<String> {
            None
        }
    }

    #[test]
    fn a_life_becomes_reports_in_order() {
        let collected = Collected::default();
        let (watchers, mut watcher) = broadcast::channel(64);
        let shared = SharedGauges::default();
        let (publisher, thread) =
            start(Box::new(ThisHostIsOrig), Some(Box::new(collected.clone())), watchers, Arc::clone(&shared))
                .unwrap();
        assert!(publisher.is_wanted());
        publisher.events(Conversation::new().ordinary_life());
        drop(publisher);
        thread.join().unwrap();
        let reports = collected.0.lock().unwrap().clone();
        let kinds: Vec<_> = reports.iter().map(|report| report.body.kind()).collect();
        assert_eq!(kinds, [["transition"; 10].as_slice(), &["conn_closed"]].concat());
        assert_eq!(reports.iter().map(|report| report.seq).collect::<Vec<_>>(), (1..=11).collect::<Vec<_>>());
        for report in &reports {
            assert_eq!(report.body.proc().map(|owner| owner.pid), Some(4_711));
            assert_eq!(*watcher.try_recv().unwrap(), *report);
        }
        assert_eq!(Losses::get(&shared.reports), 11);
    }

    #[test]
    fn a_full_queue_is_counted() {
        struct Stuck(Arc<Mutex<()>>);
        impl Sink for Stuck {
            fn take(&mut self, _: &Report) {
                drop(self.0.lock());
            }
            fn flush(&mut self) {}
        }
        let gate = Arc::new(Mutex::new(()));
        let shared = SharedGauges::default();
        let (publisher, thread) = start(
            Box::new(crate::owner::NoHost),
            Some(Box::new(Stuck(Arc::clone(&gate)))),
            broadcast::channel(1).0,
            Arc::clone(&shared),
        )
        .unwrap();
        let held = gate.lock().unwrap();
        let [syn, ..] = Conversation::new().handshake()[..] else { panic!("three") };
        let batch = vec![syn; MOST_WAITING / 4];
        for _ in 0..7 {
            publisher.events(batch.clone());
        }
        let lost = Losses::get(&shared.losses.queue);
        assert_eq!(lost, 3 * batch.len() as u64);
        publisher.anomalies(vec![Conversation::new().finding(End::Low, State::Closed)]);
        drop(held);
        drop(publisher);
        thread.join().unwrap();
        assert_eq!(Losses::get(&shared.losses.queue), lost, "there is always room for a finding");
        assert_eq!(shared.backlog.events.load(Ordering::Relaxed), 0);
    }
}
