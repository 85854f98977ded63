//! Health check ports.
use std::collections::BTreeMap;

use common_informer::object::ObjectKey;

use crate::plan::part::HealthCheck;

/// Placeholder until the server is there.
#[derive(Debug)]
pub struct Health {}

impl Health {
    /// Answers for these ports from now on, and for no others.
    pub fn set(&mut self, _checks: &BTreeMap<u16, (ObjectKey, HealthCheck)>) {}

    /// Ports that cannot be listened on.
    pub fn failures(&self) -> Vec<(ObjectKey, String)> {
        Vec::new()
    }
}
