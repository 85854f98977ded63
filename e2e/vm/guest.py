"""The guest's kernel and file system, from Debian's packages; nothing is installed.

    Debian's archive ── packages/*.deb ──┬── vmlinuz          cached in target/vm, made anew when a package
                                         └── base.cpio        or this file changes
    cargo's binaries ─────────────────────── tests.cpio       made for each run
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNEL = "linux-image-cloud-amd64"
# Programs of the guest. Of what they depend on, the libraries come along.
TOOLS = [
    "bash", "busybox-static", "ca-certificates", "conntrack", "iproute2", "ipset", "iptables", "iputils-ping", "ipvsadm",
    "kmod", "libgcc-s1", "netbase", "nftables", "strace", "tcpdump", "util-linux",
]  # fmt: skip
LEFT_OUT = re.compile(
    r"usr/share/(doc|man|locale|lintian|bash-completion|info|perl5|i18n|ca-certificates|nmap|menu|pixmaps)(/|$)"
    r"|usr/lib/systemd(/|$)|boot(/|$)|usr/lib/modules(/|$)|var(/|$)|etc/init\.d(/|$)"
)
# Modules that are in the image, below kernel/, with what they depend on.
MODULES = re.compile(
    r"net/(802|8021q|bridge|core|ipv4|ipv6|key|llc|netfilter|netlink|packet|sched|sctp|unix|xfrm)/"
    r"|drivers/net/(dummy|geneve|ifb|macvlan|tap|tun|veth|vrf|bonding/|ipvlan/|vxlan/|wireguard/)"
    r"|fs/overlayfs/"
)
# Since Debian 12 these are links to folders below /usr; packages still name them.
MERGED_FOLDERS = ("bin", "sbin", "lib", "lib64")
MERGED = re.compile(rf"^({'|'.join(MERGED_FOLDERS)})(?=/|$)")


class Failed(Exception):
    """What could not be made, in words for the person at the terminal."""


def say(text):
    print(f"vm: {text}", file=sys.stderr, flush=True)


def output(*command, **more):
    done = subprocess.run(command, text=True, capture_output=True, **more)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def as_one(path):
    """A path below / as it is after the merge of /bin, /sbin and /lib with /usr."""
    return MERGED.sub(r"usr/\1", str(path).lstrip("/"))


class Archive:
    """A cpio archive as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst).

    All belongs to root, so it can be written by anybody.
    """

    def __init__(self, path):
        self.file = open(path, "wb")
        self.names = set()

    def _entry(self, name, mode, data=b""):
        self.names.add(name)
        encoded = name.encode() + b"\0"
        numbers = [len(self.names), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0]
        head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
        for part in (head, data):
            self.file.write(part + b"\0" * (-len(part) % 4))

    def folder(self, name, mode=0o755):
        name = as_one(name).rstrip("/")
        if name and name != "." and name not in self.names:
            self.folder(str(Path(name).parent))
            self._entry(name, stat.S_IFDIR | mode)

    def _into_folder(self, name):
        name = as_one(name)
        self.folder(str(Path(name).parent))
        return name if name not in self.names else None

    def data(self, name, data, mode=0o644):
        if name := self._into_folder(name):
            self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        if name := self._into_folder(name):
            self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def merged(self, name):
        """The link from /name to /usr/name."""
        self._entry(name, stat.S_IFLNK | 0o777, f"usr/{name}".encode())

    def copy(self, path, name):
        """A file, a link, or a folder with what is in it."""
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            self.link(name, os.readlink(path))
        elif stat.S_ISDIR(kind):
            self.folder(name)
            for inner in sorted(path.iterdir()):
                self.copy(inner, f"{name}/{inner.name}")
        else:
            self.data(name, path.read_bytes(), stat.S_IMODE(kind))

    def close(self):
        self._entry("TRAILER!!!", 0)
        self.file.close()


class Packages:
    """Debian packages of the versions that apt would install, in a folder."""

    APT = ("apt-get", "-o", "APT::Sandbox::User=root", "-qq")

    def __init__(self, folder):
        self.folder = folder

    @staticmethod
    def _graph(names):
        kinds = "recommends suggests conflicts breaks replaces enhances".split()
        listing = output("apt-cache", "depends", "--recurse", *(f"--no-{kind}" for kind in kinds), *names)
        graph, current = {}, None
        for line in listing.splitlines():
            if not line.startswith((" ", "|")):
                current = graph.setdefault(line.strip(), [])
            elif current is not None and "Depends:" in line:
                current.append(line.split(":", 1)[1].strip())
        return graph

    def _wanted(self, kernel):
        """(file name, size) of each package."""
        graph = self._graph([kernel, *TOOLS])
        # A metapackage names the kernel of the day.
        names = {n for n in [kernel, *graph[kernel]] if re.fullmatch(r"linux-image-\d.*", n)}
        todo = list(TOOLS)
        while todo:
            name = todo.pop()
            if name not in names:
                names.add(name)
                todo += [n for n in graph.get(name, []) if n.startswith(("lib", "zlib")) and n in graph]
        listing = output(*self.APT, "download", "--print-uris", *sorted(names))
        return [(line.split()[1], int(line.split()[2])) for line in listing.splitlines() if line]

    def fetch(self, kernel):
        """Paths of the packages: those of the guest, and that of the kernel."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return self._fetch(kernel)
        except (Failed, KeyError):
            say("apt-get update")
            output(*self.APT, "update")
            return self._fetch(kernel)

    def _fetch(self, kernel):
        wanted = self._wanted(kernel)
        missing = [
            name for name, size in wanted
            if not (path := self.folder / name).exists() or path.stat().st_size != size
        ]  # fmt: skip
        if missing:
            say(f"fetching {len(missing)} packages of Debian")
            exact = [re.sub(r"^([^_]+)_(.*)_[^_]+\.deb$", r"\1=\2", name).replace("%3a", ":") for name in missing]
            output(*self.APT, "download", *exact, cwd=self.folder)
        paths = [self.folder / name for name, _ in wanted]
        kernels = [path for path in paths if path.name.startswith("linux-image-")]
        if len(kernels) != 1:
            raise Failed(f"{kernel} is not one kernel but {len(kernels)}")
        return [path for path in paths if path not in kernels], kernels[0]


class Base:
    """Kernel and file system without tests. Made when it is not there."""

    def __init__(self, cache, kernel_package):
        packages, kernel = Packages(cache / "packages").fetch(kernel_package)
        key = hashlib.sha256(Path(__file__).read_bytes())
        for path in [*packages, kernel]:
            key.update(path.name.encode())
        self.kernel_version = kernel.name.split("_")[1]
        self.folder = cache / f"base-{key.hexdigest()[:16]}"
        self.kernel = self.folder / "vmlinuz"
        self.archive = self.folder / "base.cpio"
        if not self.folder.exists():
            say(f"making the guest of {kernel.name}")
            work = cache / "work"
            shutil.rmtree(work, ignore_errors=True)
            self._make(work, packages, kernel)
            shutil.rmtree(work)

    def _make(self, work, packages, kernel):
        root, image, made = work / "root", work / "kernel", work / "made"
        for folder in (root, image, made):
            folder.mkdir(parents=True)
        for package in packages:
            output("dpkg-deb", "-x", package, root)
        for name in MERGED_FOLDERS:
            if (root / name).exists():
                shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
                shutil.rmtree(root / name)
        output("dpkg-deb", "-x", kernel, image)
        (vmlinuz,) = (image / "boot").glob("vmlinuz-*")
        shutil.copy(vmlinuz, made / "vmlinuz")
        version = vmlinuz.name.removeprefix("vmlinuz-")
        archive = Archive(made / "base.cpio")
        for name in MERGED_FOLDERS:
            archive.merged(name)
        for name in ("dev", "proc", "sys", "run", "root", "mnt"):
            archive.folder(name)
        archive.folder("tmp", 0o1777)
        archive.data("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
        archive.data("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
        archive.data("etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")
        # What the package's script would do.
        certificates = sorted((root / "usr/share/ca-certificates/mozilla").iterdir())
        whole = b"".join(path.read_bytes() for path in certificates)
        archive.data("etc/ssl/certs/ca-certificates.crt", whole)
        self._add_modules(archive, root, image, version)
        self._check_libraries(root)
        self._add_tools(archive, root)
        archive.close()
        made.rename(self.folder)

    @staticmethod
    def _add_modules(archive, root, image, version):
        # depmod of the guest's packages, with their libraries: the host need have none.
        libraries = root / "usr/lib/x86_64-linux-gnu"
        loader = libraries / "ld-linux-x86-64.so.2"
        depmod = [loader, "--library-path", libraries, "--argv0", "depmod", root / "usr/bin/kmod"]
        output(*map(str, depmod), "-b", str(image), version)
        modules = image / "lib/modules" / version
        depends = {}
        for line in (modules / "modules.dep").read_text().splitlines():
            name, _, others = line.partition(":")
            depends[name] = others.split()
        # modules.dep names indirect dependencies as well.
        wanted = {name for name in depends if MODULES.search(name.removeprefix("kernel/"))}
        wanted |= {other for name in wanted for other in depends[name]}
        for path in sorted(wanted) + sorted(path.name for path in modules.glob("modules.*")):
            archive.copy(modules / path, f"lib/modules/{version}/{path}")

    @staticmethod
    def _check_libraries(root):
        """Only libraries were taken of what the programs depend on: are they all there?"""
        libraries = root / "usr/lib/x86_64-linux-gnu"
        for path in [*(root / "usr/bin").iterdir(), *(root / "usr/sbin").iterdir()]:
            if path.is_symlink() or path.read_bytes()[:4] != b"\x7fELF":
                continue
            listing = [libraries / "ld-linux-x86-64.so.2", "--library-path", libraries, "--list", path]
            words = subprocess.run(listing, capture_output=True, text=True)
            if "cannot open shared object" in words.stderr:
                raise Failed(words.stderr.strip())

    @staticmethod
    def _add_tools(archive, root):
        def add(path):
            name = as_one(path.relative_to(root))
            if LEFT_OUT.match(name):
                return
            if path.is_dir() and not path.is_symlink():
                for inner in sorted(path.iterdir()):
                    add(inner)
            else:
                archive.copy(path, name)

        add(root)
        # Debian's programs come first; busybox gives the rest. Not the shell: busybox's runs its own ip for ip.
        archive.link("usr/bin/sh", "bash")
        for applet in output(root / "usr/bin/busybox", "--list").split():
            if f"usr/sbin/{applet}" not in archive.names:
                archive.link(f"usr/bin/{applet}", "busybox")
