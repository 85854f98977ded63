"""How image_check.py and metrics_check.py judge, wait and report."""

import subprocess
import time


def require(fact, message):
    if not fact:
        raise AssertionError(message)


def wait_for(condition, seconds, message):
    """Polls until `condition()` holds. `message` is a function, so that it can show how things are at the end."""
    deadline = time.monotonic() + seconds
    while not condition():
        require(time.monotonic() < deadline, f"still not so after {seconds} s: {message()}")
        time.sleep(0.1)


def run_all(topic, checks, *arguments):
    """Runs each check, whatever becomes of the others, and gives the exit code."""
    failed = 0
    for check in checks:
        try:
            check(*arguments)
            print(f"{topic} {check.__name__}: ok", flush=True)
        except (AssertionError, subprocess.SubprocessError, OSError) as error:
            failed += 1
            detail = getattr(error, "stderr", None) or ""
            print(f"{topic} {check.__name__}: FAILED\n    {error}\n{detail}", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0
