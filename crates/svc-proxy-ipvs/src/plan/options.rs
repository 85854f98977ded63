//! What annotations of a Service say about how it is balanced.

use common_informer::object::ServiceSettings;
use kernel_netlink::ipvs::{Flags, Scheduler};

use crate::model::problem::{Problem, Reason};

/// Schedulers that a Service may name. KERNEL: `ip_vs_<name>.ko`; those that look at the connections' number,
/// the weight or a hash, and need nothing beside.
pub const SCHEDULERS: [&str; 9] = ["rr", "wrr", "lc", "wlc", "dh", "sh", "mh", "sed", "nq"];

/// kube-router's words for the schedulers' flags, and those of `ipvsadm`.
const FLAGS: [(&str, Flags); 7] = [
    ("flag-1", Flags::SCHEDULER_1),
    ("flag-2", Flags::SCHEDULER_2),
    ("flag-3", Flags::SCHEDULER_3),
    ("sh-fallback", Flags::SCHEDULER_1),
    ("sh-port", Flags::SCHEDULER_2),
    ("mh-fallback", Flags::SCHEDULER_1),
    ("mh-port", Flags::SCHEDULER_2),
];

/// How a Service is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balancing {
    /// `kube-router.io/service.scheduler`
    pub scheduler: Scheduler,
    /// `kube-router.io/service.schedflags`; only `sh` and `mh` have any.
    pub flags: Flags,
}

/// Reads the annotations; what means nothing is reported, and `default` holds.
pub fn balancing(settings: &ServiceSettings, default: Scheduler, problems: &mut Vec<Problem>) -> Balancing {
    let scheduler = match settings.annotation("service.scheduler").map(str::trim) {
        None => default,
        Some(name) => match Scheduler::new(name).filter(|_| SCHEDULERS.contains(&name)) {
            Some(scheduler) => scheduler,
            None => {
                problems.push(Problem::new(
                    Reason::BadAnnotation,
                    format!(
                        "kube-router.io/service.scheduler: {name:?} is none of {}; {default} is used",
                        SCHEDULERS.join(", ")
                    ),
                ));
                default
            }
        },
    };
    Balancing { scheduler, flags: flags(settings, scheduler, problems) }
}

fn flags(settings: &ServiceSettings, scheduler: Scheduler, problems: &mut Vec<Problem>) -> Flags {
    let mut flags = Flags::default();
    let Some(text) = settings.annotation("service.schedflags") else { return flags };
    if !["sh", "mh"].contains(&scheduler.as_str()) {
        problems.push(Problem::new(
            Reason::BadAnnotation,
            format!("kube-router.io/service.schedflags: the scheduler {scheduler} has no flags"),
        ));
        return flags;
    }
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match FLAGS.iter().find(|(name, _)| *name == word) {
            Some((_, flag)) => flags = flags | *flag,
            None => problems.push(Problem::new(
                Reason::BadAnnotation,
                format!("kube-router.io/service.schedflags: {word:?} is no flag; there are flag-1 (fallback) and flag-2 (port)"),
            )),
        }
    }
    flags
}

/// An annotation that is true or false; what is neither is reported and counts as false.
pub fn flag(settings: &ServiceSettings, name: &str, problems: &mut Vec<Problem>) -> bool {
    match settings.flag(name) {
        Ok(value) => value.unwrap_or(false),
        Err(value) => {
            problems.push(Problem::new(
                Reason::BadAnnotation,
                format!("kube-router.io/{name}: {value:?} is neither true nor false; it counts as false"),
            ));
            false
        }
    }
}
