//! The only input and output: files of the node, its links and sysctls, the status of its Node.

pub mod conf_file;
pub mod file;
pub mod link;
pub mod plugin;
pub mod status;
pub mod watch;
