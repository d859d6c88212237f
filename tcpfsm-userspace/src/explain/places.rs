//! What stands in for the places in commands.

use super::{story::Story, tell::own_side, texts::PLACES};
use crate::report::{Anomaly, Local, Side};

/// What is known of [`PLACES`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places([Option<String>; PLACES.len()]);

impl Places {
    /// From a connection. `concerned`: the end that it is about, where it is about one; commands are for its host.
    #[must_use]
    pub fn of_story(story: &Story, concerned: Option<Side>) -> Self {
        let side = concerned.or_else(|| own_side(story)).unwrap_or(Side::Resp);
        let peer = story.address(side.other());
        // The process that is known is this host's.
        let own = concerned.is_none_or(|side| story.local.is_some_and(|local| local.includes(side)));
        let pid = story.proc.as_ref().filter(|_| own).map(|proc| proc.pid.to_string());
        let (port, ip) = (story.resp.port().to_string(), story.resp.ip().to_string());
        Self([Some(port), Some(ip), Some(peer.ip().to_string()), pid])
    }

    /// From an anomaly that goes on.
    #[must_use]
    pub fn of_anomaly(anomaly: &Anomaly) -> Self {
        let Anomaly { flow, service, proc, .. } = anomaly;
        let peer = flow.address(flow.local.map_or(Side::Resp, Local::side).other());
        let pid = proc.as_ref().map(|proc| proc.pid.to_string());
        Self([
            Some(service.port().to_string()),
            Some(service.ip().to_string()),
            Some(peer.ip().to_string()),
            pid,
        ])
    }

    pub(super) fn fill(&self, command: &str) -> String {
        PLACES.iter().zip(&self.0).fold(command.to_owned(), |text, ((place, unknown), known)| {
            text.replace(place, known.as_deref().unwrap_or(unknown))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        explain::tell::bare,
        owner::Proc,
        pipeline::synthetic::{ORIG, RESP},
    };

    #[test]
    fn a_command_is_for_the_host_of_the_end_concerned() {
        let mut story = bare(ORIG, RESP, Vec::new());
        story.local = Some(Local::Resp);
        story.proc = Some(Proc { pid: 7, ..Proc::default() });
        let filled = |concerned| Places::of_story(&story, concerned).fill("{ip}:{port} {peer} {pid}");
        assert_eq!(filled(None), "10.0.0.2:8080 10.0.0.1 7");
        assert_eq!(filled(Some(Side::Resp)), "10.0.0.2:8080 10.0.0.1 7");
        assert_eq!(filled(Some(Side::Orig)), "10.0.0.2:8080 10.0.0.2 PID", "7 is another host's");
    }
}
