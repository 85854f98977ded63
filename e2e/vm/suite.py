"""Suites: what cargo builds for them, and the part of the guest's file system that holds them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from guest import HERE, Archive, Failed, say

ROOT = HERE.parent.parent
# How many times as slow an emulated machine is, for tests that wait.
SLOWNESS = 5


@dataclass
class Suite:
    """A table of suites.toml."""

    name: str
    package: str
    timeout_seconds: int
    # Target of cargo: --test, or --bench, which is built for release.
    test: str = ""
    bench: str = ""
    features: list[str] = field(default_factory=list)
    # Binaries of other packages that the tests start.
    programs: list[str] = field(default_factory=list)
    # Files and folders of the project that the tests read.
    files: list[str] = field(default_factory=list)
    # Threads of the test harness; as many as there are processors if absent.
    threads: int | None = None
    # Under emulation loaded first: the kernel takes half a second to find and load each one by itself.
    preload: list[str] = field(default_factory=list)
    # Arguments of the test harness under emulation: what is worth the time.
    emulated: list[str] = field(default_factory=list)
    # Found by cargo.
    program: Path | None = None
    folder: Path | None = None


def read_suites(names):
    """The suites of these names, or all; benchmarks run only by name."""
    with open(HERE / "suites.toml", "rb") as file:
        tables = tomllib.load(file)
    suites = [Suite(**table) for table in [*tables["suite"], *tables.get("bench", [])]]
    unknown = set(names) - {suite.name for suite in suites}
    if unknown:
        raise Failed(f"no suite {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in suites)}")
    return [suite for suite in suites if (suite.name in names if names else suite.test)]


def build(suites):
    """Has cargo build the suites; returns the programs that they start, by the paths they know."""
    tests, benches = [s for s in suites if s.test], [s for s in suites if s.bench]
    # Crates are compiled anew for each choice of packages and features: that of another lane can be given.
    shared = shlex.split(os.environ.get("VM_CARGO_FLAGS") or "")
    programs = compile_suites(["test", *shared], tests, not shared) if tests else []
    programs += compile_suites(["bench"], benches, True) if benches else []
    # A program of its own package is built with a suite.
    if names := sorted({name for suite in suites for name in suite.programs}):
        words = ["build", *shared, *(f"--bin={name}" for name in names)]
        words += [] if shared else [f"--package={name}" for name in names]
        programs += [executable for executable, message in cargo(words) if message["target"]["kind"] == ["bin"]]
    return list(dict.fromkeys(programs))


def cargo(words):
    """Has cargo build something; gives each program with what cargo says of it."""
    words = ["cargo", *words, "--message-format=json-render-diagnostics"]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed("cargo failed")
    messages = map(json.loads, done.stdout.splitlines())
    return [(Path(message["executable"]), message) for message in messages if message.get("executable")]


def compile_suites(command, suites, named):
    """Has one command of cargo build suites, of their own packages only if `named`."""
    words = [*command, "--no-run"]
    for suite in suites:
        words += [f"--test={suite.test}" if suite.test else f"--bench={suite.bench}"]
        words += [f"--features={suite.package}/{name}" for name in suite.features]
        words += ["-p", suite.package] if named else []
    programs = []
    for path, message in cargo(words):
        target = message["target"]
        # Packages are in folders of their names.
        folder = Path(message["manifest_path"]).parent
        if target["kind"] == ["bin"] and folder.name in {suite.package for suite in suites}:
            programs.append(path)
        for suite in suites:
            kind, name = ("test", suite.test) if suite.test else ("bench", suite.bench)
            if target["kind"] == [kind] and (folder.name, target["name"]) == (suite.package, name):
                suite.program, suite.folder = path, folder
    for suite in suites:
        if not suite.program:
            raise Failed(f"cargo built nothing for {suite.name}")
    return programs


def stripped(path, work):
    """The program without what only a debugger reads: nine tenths of it."""
    target = work / path.name
    if not shutil.which("strip"):
        return path
    subprocess.run(["strip", "--strip-debug", "-o", target, path], check=True)
    return target


def libraries(path):
    """The shared libraries of a program of this machine, with the loader."""
    done = subprocess.run(["ldd", path], capture_output=True, text=True)
    if done.returncode:
        # Static.
        return []
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", done.stdout)]


def write_tests(path, suites, programs, plan):
    """The archive with the suites' programs, the files that they read, and /vm/plan."""
    work = path.parent / "stripped"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    archive = Archive(path)
    archive.copy(HERE / "init", "init")
    archive.data("vm/plan", plan.encode())
    for program in programs:
        archive.copy(stripped(program, work), str(program))
    for suite in suites:
        archive.copy(stripped(suite.program, work), f"vm/bin/{suite.name}")
        archive.folder(str(suite.folder))
        for name in suite.files:
            archive.copy(ROOT / name, str(ROOT / name))
        start = f"#!/bin/sh\ncd {shlex.quote(str(suite.folder))} && exec /vm/bin/{suite.name} \"$@\"\n"
        archive.data(f"vm/{suite.name}", start.encode(), 0o755)
    for program in [*programs, *(suite.program for suite in suites)]:
        for library in libraries(program):
            # What it links to, under the name it is asked for by.
            archive.data(str(library), library.read_bytes(), 0o755)
    archive.close()
    shutil.rmtree(work)


def plan(suites, number, limit, arguments, emulated):
    """The script of a run: one step for each suite."""
    lines = [f"VM_NUMBER={number}", "mark up $(uname -r)"]
    if emulated:
        lines.append(f"export TEST_NETNS_SLOWNESS={SLOWNESS}")
    if seed := os.environ.get("PROPTEST_RNG_SEED"):
        lines.append(f"export PROPTEST_RNG_SEED={int(seed)}")
    for suite in suites:
        words = []
        if suite.test:
            words.append("--color=always" if sys.stdout.isatty() else "--color=never")
        if suite.threads:
            words.append(f"--test-threads={suite.threads}")
        if emulated and not os.environ.get("VM_ALL") and not arguments:
            words += suite.emulated
        if emulated and suite.preload:
            lines.append(shlex.join(["modprobe", "-a", *suite.preload]))
        lines.append(shlex.join(["step", suite.name, str(limit[suite.name]), *words, *arguments]))
    lines.append("mark end")
    return "\n".join(lines) + "\n"
