//! Every name that lb-ipam owns at the API server. In the kernel it owns nothing.

/// Field manager of the status of Services (server-side apply).
pub const FIELD_MANAGER: &str = "lb-ipam";

/// The Lease of the leader, in the namespace of the pod. It is the one of kube-router's allocator
/// (`--run-loadbalancer`), so that the two of them never allocate at the same time.
pub const LEASE: &str = "kube-router-lballoc";

/// `spec.loadBalancerClass` of Services that are always ours.
pub const CLASS: &str = "kube-router";

/// The other class that is ours unless `--loadbalancer-default-class=false`, as is no class at all.
pub const DEFAULT_CLASS: &str = "default";

/// Annotation, behind `kube-router.io/`: addresses asked for, separated by commas, one for each family at most.
pub const ASKED_ANNOTATION: &str = "loadbalancer.ips";

/// Annotation, behind `kube-router.io/`: the pool that addresses must come from.
pub const POOL_ANNOTATION: &str = "loadbalancer.pool";

/// Annotation, behind `kube-router.io/`: Services of a namespace with the same word may share addresses.
pub const SHARE_ANNOTATION: &str = "loadbalancer.share-key";
