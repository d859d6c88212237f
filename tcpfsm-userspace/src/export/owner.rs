//! Owners in one cell, for people.

use super::text::Width;
use crate::owner::{Confidence, Proc, Unowned};

/// How many letters of a container id or pod people recognise it by.
const SHORT_ID: usize = 12;

/// Says what the marks in the cell mean.
pub const LEGEND: &str = "(name) only listens there   was name: has closed it";

/// Who owns an end, or why nobody does; empty where nobody asked.
#[must_use]
pub fn cell(proc: Option<&Proc>, unowned: Option<&Unowned>, width: Width) -> String {
    match (proc, unowned) {
        (Some(proc), _) => {
            let Proc { pid, comm, exe, unit, container, pod, confidence } = proc;
            let mut text = match confidence {
                Confidence::Socket => format!("{comm}[{pid}]"),
                Confidence::Earlier => format!("was {comm}[{pid}]"),
                Confidence::Listener => format!("({comm}[{pid}])"),
            };
            if width == Width::Wide {
                let place = place(unit.as_deref(), container.as_deref(), pod.as_deref());
                for word in place.iter().chain(exe.as_ref()) {
                    text.push(' ');
                    text.push_str(word);
                }
            }
            text
        }
        (None, Some(Unowned { why, unit, container, pod })) => {
            let place = place(unit.as_deref(), container.as_deref(), pod.as_deref());
            if place.is_empty() {
                format!("- {}", why.short())
            } else {
                format!("{} ({})", place.join(" "), why.short())
            }
        }
        (None, None) => String::new(),
    }
}

fn place(unit: Option<&str>, container: Option<&str>, pod: Option<&str>) -> Vec<String> {
    let short = |id: &str| id.chars().take(SHORT_ID).collect::<String>();
    let unit = unit.map(str::to_owned);
    let container = container.map(|id| format!("container:{}", short(id)));
    let pod = pod.map(|id| format!("pod:{}", short(id)));
    [unit, container, pod].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::WhyUnowned;

    #[test]
    fn how_sure_it_is_shows() {
        let proc = |confidence| Proc {
            pid: 4_711,
            comm: "java".into(),
            unit: Some("app.service".into()),
            container: Some("0123456789abcdef0123".into()),
            confidence,
            ..Proc::default()
        };
        let shown = |confidence, width| cell(Some(&proc(confidence)), None, width);
        assert_eq!(shown(Confidence::Socket, Width::Table), "java[4711]");
        assert_eq!(shown(Confidence::Listener, Width::Table), "(java[4711])");
        assert_eq!(
            shown(Confidence::Earlier, Width::Wide),
            "was java[4711] app.service container:0123456789ab"
        );
        let mut hidden = Unowned::from(WhyUnowned::Hidden);
        assert_eq!(cell(None, Some(&hidden), Width::Table), "- hidden");
        hidden.unit = Some("app.service".into());
        assert_eq!(cell(None, Some(&hidden), Width::Table), "app.service (hidden)");
        assert_eq!(cell(None, Some(&WhyUnowned::TimeWait.into()), Width::Wide), "- TIME-WAIT: normal");
        assert_eq!(cell(None, None, Width::Wide), "");
    }
}
