"""QEMU: whether KVM works, the guest's console, and what a run came to."""

import os
import re
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from guest import Failed, output, say

# Until /init runs. Emulated it takes 5 s, but the machine may be busy.
BOOT_SECONDS = {"kvm": 20, "tcg": 180, "icount": 600}
# How long a suite's own time limit may be overrun before the guest is taken for dead.
GRACE_SECONDS = 60
# What SeaBIOS and the kernel do to the terminal; colours stay.
TERMINAL = re.compile(r"\x1b(c|\[[0-9;?]*[A-HJKSTfhlnr])|\r")


class NoBoot(Exception):
    """The machine never got to /init."""


@dataclass
class Result:
    """What a run came to: (suite, status or None, seconds) for each that was started, and what went wrong
    with the machine itself."""

    suites: list = field(default_factory=list)
    fault: str = ""


def command(accelerator, kernel, archives, memory, interactive=False):
    processors = 1 if accelerator == "icount" else min(os.cpu_count() or 1, 4)
    words = ["qemu-system-x86_64", "-M", "q35", "-m", memory, "-smp", str(processors)]
    # q35: under emulation microvm has no clock that it trusts and may hang at boot.
    words += ["-nic", "none", "-vga", "none", "-display", "none", "-no-reboot"]
    fast, slow = ["-accel", "kvm", "-cpu", "host"], ["-accel", "tcg,thread=multi", "-cpu", "max"]
    # The guest's clock is the number of its instructions: what else the host does, is not in it.
    counted = ["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off", "-cpu", "max"]
    words += {"kvm": fast, "tcg": slow, "icount": counted}[accelerator]
    words += ["-serial", "mon:stdio" if interactive else "stdio"]
    # A kernel that hangs says where, and its guest ends.
    append = "console=ttyS0 loglevel=3 panic=-1 oops=panic softlockup_panic=1 softlockup_all_cpu_backtrace=1"
    append += " mitigations=off random.trust_cpu=on"
    if accelerator != "kvm":
        # An emulated processor stands still for many seconds when the host is busy: called locked up after 120.
        append += " watchdog_thresh=60"
    return [*words, "-kernel", str(kernel), "-initrd", str(archives), "-append", append]


def joined(path, archives):
    """The kernel reads archives one after the other."""
    with open(path, "wb") as whole:
        for archive in archives:
            with open(archive, "rb") as part:
                shutil.copyfileobj(part, whole)
    return path


class Acceleration:
    """KVM if it works.

    That /dev/kvm is there says little: QEMU may abort, or the guest stand still in its first instructions.
    So it is tried with the guest itself, and what did not work on this host is not tried again.
    """

    def __init__(self, cache):
        self.note = cache / "no-kvm"
        self.host = f"{os.uname().release} {output('qemu-system-x86_64', '--version').splitlines()[0]}"

    def choose(self):
        asked = os.environ.get("VM_ACCEL")
        if asked:
            if asked not in BOOT_SECONDS:
                raise Failed(f"VM_ACCEL is one of {', '.join(BOOT_SECONDS)}")
            return [asked]
        failed = self.note.exists() and self.note.read_text() == self.host
        return ["tcg"] if failed or not os.access("/dev/kvm", os.R_OK | os.W_OK) else ["kvm", "tcg"]

    def fails(self, reason):
        say(f"KVM does not work here ({reason}): emulating")
        self.note.write_text(self.host)


class Console:
    """Reads the guest's console: shows it, keeps it in a file, finds the marks in it."""

    def __init__(self, words, log, number):
        self.mark = re.compile(rf"@{number} (\w+) ?(.*)")
        self.log = open(log, "w")
        self.early = []
        self.up = None
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.rest = b""

    def lines(self, deadline):
        """Lines until the machine is off; (None, None) when the time is up. `deadline()` is asked anew."""
        stream = self.process.stdout.fileno()
        while True:
            wait = deadline() - time.monotonic()
            if wait <= 0:
                yield None
                return
            if not select.select([stream], [], [], min(wait, 1))[0]:
                continue
            data = os.read(stream, 65536)
            if not data:
                return
            *whole, self.rest = (self.rest + data).split(b"\n")
            for line in whole:
                line = TERMINAL.sub("", line.decode(errors="replace"))
                self.log.write(line + "\n")
                self.log.flush()
                yield line

    def show(self, line):
        """Once the guest is up; with the seconds since then."""
        if self.up:
            print(f"vm {time.monotonic() - self.up:4.0f} | {line}", flush=True)
        else:
            self.early.append(line)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def run(words, log, number, boot_seconds, limit):
    """Runs the machine to its end. `limit`: suite to seconds. Raises NoBoot if it never came up."""
    console = Console(words, log, number)
    result, ended = Result(), False
    deadline = time.monotonic() + boot_seconds
    begun = panic = None
    try:
        for line in console.lines(lambda: deadline):
            if line is None:
                what = f"{result.suites[-1][0]} does not end" if begun else "no sign of life"
                result.fault = f"the guest hangs: {what}"
                break
            found = console.mark.search(line)
            if "Kernel panic" in line:
                panic = line
            if not found:
                console.show(line)
                continue
            word, rest = found.groups()
            deadline = time.monotonic() + GRACE_SECONDS
            if word == "up":
                console.up = time.monotonic()
                say(f"Linux {rest}")
            elif word == "start":
                result.suites.append((rest, None, 0))
                deadline += limit[rest]
                begun = time.monotonic()
            elif word == "exit":
                name, status = rest.split()
                result.suites[-1] = (name, int(status), time.monotonic() - begun)
                begun = None
            elif word == "end":
                ended = True
    finally:
        console.close()
    if not console.up:
        reason = result.fault or panic or (console.early or ["QEMU said nothing"])[-1]
        raise NoBoot(reason.strip())
    if panic:
        result.fault = panic
    elif not ended and not result.fault:
        result.fault = "the guest ended without telling a status"
    return result


def interact(words):
    """The guest's console is this terminal."""
    return subprocess.run(words).returncode
