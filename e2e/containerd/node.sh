# A node's ground for containers, in namespaces of its own: sourced by the scripts that start containerd.
#
# Debian's packages are unpacked below the target folder, not installed. /etc/cni, /opt/cni, /run and what else is
# named stay as they are on the machine.
programs=$target/containerd
socket=/run/containerd/containerd.sock

fail() { echo "FAILED: $*" >&2; exit 1; }

# Programs, from Debian.
fetch() {
    local packages=(busybox-static containerd runc)
    [ -x "$programs/usr/bin/ctr" ] && [ -x "$programs/usr/sbin/runc" ] && [ -x "$programs/bin/busybox" ] && return
    mkdir -p "$programs/debs"
    (cd "$programs/debs" && { apt-get download -qq "${packages[@]}" || { apt-get update -qq && apt-get download -qq "${packages[@]}"; }; }) 2>/dev/null
    for package in "$programs"/debs/*.deb; do dpkg -x "$package" "$programs"; done
    rm -r "$programs/debs"
}

# private_folders FOLDER…: these, and those of CNI.
private_folders() {
    mount --make-rprivate /
    mount -t tmpfs none /run
    local folder
    for folder in /etc /opt "$@"; do
        mkdir -p "$work$folder/upper" "$work$folder/work" "$folder"
        mount -t overlay none -o "lowerdir=$folder,upperdir=$work$folder/upper,workdir=$work$folder/work" "$folder"
    done
    mkdir -p /etc/cni /opt/cni
    mount -t tmpfs none /etc/cni
    mount -t tmpfs none /opt/cni
    mkdir -p /etc/cni/net.d /opt/cni/bin
    ip link set lo up
}

# start_containerd CONFIG
start_containerd() {
    containerd --config "$1" --root "$work/root" --state /run/containerd --address "$socket" >"$work/containerd.log" 2>&1 &
    local tries
    for ((tries = 0; tries < 100; tries++)); do ctr version >/dev/null 2>&1 && return; sleep 0.1; done
    cat "$work/containerd.log" >&2
    fail "containerd does not answer"
}

ctr() { command ctr --address "$socket" "$@"; }

# in_namespaces SECONDS COMMAND…: of mounts, network and processes; nothing outlives it.
in_namespaces() {
    local seconds=$1
    shift
    exec timeout "$seconds" unshare --mount --net --pid --fork --mount-proc --kill-child "$@"
}
