//! Takes the agent's work from a node: the configuration, or our part of it, then the plugin.
//!
//! ORDER: the configuration first, or a runtime would call a plugin that is not there.
//!
//! Pods keep their network until they end; their reservations and rules go when the runtime, then with another plugin
//! or none, forgets them: so it is best done on a node without pods. The sysctls and the node's condition stay.

use crate::apply::conf_file::{self, Found};
use crate::apply::file::{self, FileError};
use crate::apply::plugin;
use crate::args::Config;
use crate::owned::LOOPBACK;
use crate::plan::conf::{self, Left};

/// Does it; says in a line each what it did.
///
/// # Errors
/// [`FileError`]; what comes later was not done then.
pub fn run(config: &Config) -> Result<Vec<String>, FileError> {
    let mut done = vec![configuration(config)?];
    for name in config.files.names.iter().map(String::as_str).chain([LOOPBACK]) {
        let path = config.files.bin_dir.join(name);
        let removed = plugin::uninstall(&config.files.bin_dir, name)?;
        let what = match (removed, path.exists()) {
            (true, true) => "is the program again that was there before",
            (true, false) => "removed",
            (false, true) => "is not ours, left as it is",
            (false, false) => "is not there",
        };
        done.push(format!("{} {what}", path.display()));
    }
    Ok(done)
}

fn configuration(config: &Config) -> Result<String, FileError> {
    let path = &config.files.conf;
    file::remove_drafts(path, std::time::Duration::ZERO);
    let what = match conf_file::read(path)? {
        Found::Nothing => "is not there, or empty",
        Found::Unusable(_) => "is not ours, left as it is",
        Found::Conf(found) => match conf::without_ours(&found, &config.plan.plugin_type) {
            Left::NotOurs => "is not ours, left as it is",
            Left::Nothing => {
                file::remove(path)?;
                "removed"
            }
            Left::Rest(rest) => {
                conf_file::write(path, &rest)?;
                "is without cni-bridge now; other plugins of the list are left in it"
            }
        },
    };
    Ok(format!("{} {what}", path.display()))
}
