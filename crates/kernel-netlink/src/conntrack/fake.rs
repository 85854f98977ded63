//! Tracked connections in memory, for tests of what is built on this crate.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Connection, Conntrack, Error, Protocol};

/// A table of connections in memory. Clones are the same table.
#[derive(Clone, Default)]
pub struct Fake {
    kernel: Arc<Mutex<Kernel>>,
}

#[derive(Default)]
struct Kernel {
    connections: BTreeSet<Connection>,
    passes: usize,
    errors: Vec<i32>,
}

impl Fake {
    /// A table without connections.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a connection, as packets would.
    pub fn track(&self, connection: Connection) {
        self.kernel().connections.insert(connection);
    }

    /// All connections.
    pub fn connections(&self) -> Vec<Connection> {
        self.kernel().connections.iter().copied().collect()
    }

    /// How often anybody has gone through the table.
    pub fn passes(&self) -> usize {
        self.kernel().passes
    }

    /// Lets the next pass fail with this `errno`.
    pub fn fail_next(&self, errno: i32) {
        self.kernel().errors.push(errno);
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        // A test that panicked elsewhere leaves whole connections only.
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Conntrack for Fake {
    fn delete_where(
        &mut self,
        protocol: Protocol,
        is_stale: &mut dyn FnMut(&Connection) -> bool,
    ) -> Result<usize, Error> {
        let mut kernel = self.kernel();
        kernel.passes += 1;
        if let Some(errno) = kernel.errors.pop() {
            let source = io::Error::from_raw_os_error(errno);
            return Err(Error::Io { context: "reading tracked connections", source });
        }
        let before = kernel.connections.len();
        kernel.connections.retain(|connection| connection.protocol != protocol || !is_stale(connection));
        Ok(before - kernel.connections.len())
    }
}
