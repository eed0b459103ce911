"""How is an attempt made in a process of its own, and how are attempts counted?"""

import atexit
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

LIMIT_S, LIMIT_MB = 2.0, 300
EXPECTED = {"refused", "same", "done"}
ROWS = []  # one for each attack, of what was counted


def in_a_child(work, timeout=60):
    """Return what a function returns in a process of its own: a word, or how the process ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            said = work()
        except BaseException as error:
            said = f"raised {type(error).__name__}: {error}"[:300]
        os.write(write, said.encode())
        os.close(write)
        gc.collect()
        atexit._run_exitfuncs()  # what HDF5 does at the end
        sys.stderr.flush()
        os._exit(0)
    os.close(write)
    start = time.monotonic()
    status = None
    while time.monotonic() - start < timeout:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.002)
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        return f"hung for {timeout} s"
    with os.fdopen(read) as pipe:
        said = pipe.read()
    if os.WIFSIGNALED(status):
        return f"crashed by signal {os.WTERMSIG(status)}"
    return said or "said nothing"


def in_children(works, timeout=180):
    """Return what each of many functions returns; a process does one after the other, and a new one what is left."""
    results = []
    while len(results) < len(works):
        n_done = len(results)
        with tempfile.NamedTemporaryFile("r+") as file:

            def work(n_done=n_done, file=file):
                limit = int(_memory("VmSize") + 2**12) * 2**20  # what takes all memory must not end other processes
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                for each in works[n_done:]:
                    file.write(json.dumps(each()) + "\n")
                    file.flush()
                return "done"

            ended = in_a_child(work, timeout)
            results += [json.loads(line) for line in Path(file.name).read_text().splitlines()]
        if ended != "done":
            results.append(ended)
    return results


def within_limits(work):
    """Return what a function returns, or how much it took if that is more than it may (measured on Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory is the present one
    before = _memory("VmHWM")
    start = time.process_time()  # whatever else the machine does
    said = work()
    seconds = time.process_time() - start
    megabytes = _memory("VmHWM") - before
    if seconds > LIMIT_S or megabytes > LIMIT_MB:
        return f"took {seconds:.1f} s and {megabytes:.0f} MB ({said})"
    return said


def _memory(which):
    """Megabytes of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which)]
    return int(line.split()[1]) / 1024


def report(attack, results):
    """Print how many attempts of an attack were bad, and the kinds of bad ones."""
    bad = Counter(text for text in results if text not in EXPECTED)
    ROWS.append({"attack": attack, "n": len(results), "bad": sum(bad.values())})
    print(f"{attack:45s} n {len(results):5d}   bad {sum(bad.values()):5d}", flush=True)
    for text, n in bad.most_common(8):
        print(f"    {n:5d} x {text}")


def is_refusal(error, path):
    """Return whether an error is the one that a user can act on: it names the file."""
    return isinstance(error, ValueError) and str(path) in str(error)
