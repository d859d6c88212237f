//! Which states the sockets of a namespace went through, by looking often.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::lab::{Lab, sockets};

const PERIOD: Duration = Duration::from_millis(25);

/// Looks until dropped.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Watch {
    /// Starts looking at namespace a, in the background.
    pub fn start(lab: &Lab) -> Result<Self> {
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let weak = Arc::downgrade(&seen);
        let ready = lab.a().spawn(move || {
            // Ends when the watch is dropped.
            while let Some(seen) = weak.upgrade() {
                if let (Ok(all), Ok(mut seen)) = (sockets::list_here(), seen.lock()) {
                    seen.extend(all.iter().map(|socket| socket.state));
                }
                drop(seen);
                thread::sleep(PERIOD);
            }
        });
        ready.map(|_detached| Self { seen })
    }

    /// The states seen so far.
    pub fn states(&self) -> BTreeSet<&'static str> {
        self.seen.lock().map(|seen| seen.clone()).unwrap_or_default()
    }
}
