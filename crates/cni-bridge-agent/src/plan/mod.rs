//! What should be on the node, from what is known. Pure.

pub mod condition;
pub mod conf;
pub mod folder;
pub mod mtu;
pub mod ranges;

/// What the flags say of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanConfig {
    /// `type` of our plugin: a name that it is installed by.
    pub plugin_type: String,
    /// What the file is.
    pub form: Form,
    /// The MTU of pods.
    pub mtu: mtu::Wanted,
}

/// What a configuration file is. libcni tells by the ending of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A list of plugins (`.conflist`).
    List,
    /// One plugin (`.conf`, `.json`), as before version 0.3.0 of the specification.
    Single,
}
