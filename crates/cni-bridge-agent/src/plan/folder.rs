//! Which configuration of a folder a runtime takes.

/// The name of another file that a runtime takes instead of `ours`: the first of its folder, as containerd (go-cni,
/// `loadFromConfDir`) and CRI-O (ocicni) have it. They read what ends in `.conf`, `.conflist` or `.json`, sorted as
/// bytes.
pub fn taken_instead<'a>(ours: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let read = |name: &&str| {
        let ending = name.rsplit_once('.').map(|(_, ending)| ending);
        matches!(ending, Some("conf" | "conflist" | "json"))
    };
    names.into_iter().filter(read).filter(|name| *name < ours).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_a_runtime_reads_is_taken() {
        let ours = "10-kuberouter.conflist";
        let names = ["README", "00-x.conf~", "05-x.yaml", ours, "20-a.conf", ".10-kuberouter.conflist.draft"];
        assert_eq!(taken_instead(ours, names), None);
        assert_eq!(taken_instead(ours, [ours, "10-flannel.conflist", "05-a.json"]), Some("05-a.json"));
        // kube-router's default beside the one of its manifests.
        assert_eq!(taken_instead(ours, [ours, "10-kuberouter.conf"]), Some("10-kuberouter.conf"));
        assert_eq!(taken_instead(ours, ["100-x.conf", "9-x.conf"]), None);
    }
}
