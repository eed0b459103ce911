"""What happens to files, and to the process, when disks are full, processes are killed, or files damaged or hostile?

Attempts that can crash the interpreter run in a process of their own, so that this is seen and counted. A run prints
for each attack how many attempts were made and how many were bad, and what was bad about them.

    python benchmarks/faults.py flips --n 2000
    python benchmarks/faults.py disk          # mounts a small tmpfs, so it must run as root on Linux
"""

import argparse
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import anndata
import faults_downloads
import faults_readers
import numpy as np
import pandas as pd
import torch
from attempts import EXPECTED, ROWS, in_a_child, is_refusal, report, within_limits

import ptrag_sc
from ptrag_sc.benchmark import _cache
from ptrag_sc.data import _run

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}


def small_model(folder):
    """Save a small trained model with its data, and return the folder."""
    adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=40, n_perturbations=10, n_cell_types=2)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    model = ptrag_sc.PTRAG(adata, n_candidates=4, n_hidden=16, n_layers=1, n_heads=2)
    model.train(2, accelerator="cpu", enable_progress_bar=False, logger=False)
    model.save(folder, save_anndata=True, overwrite=True)
    return folder


def load(folder):
    return ptrag_sc.PTRAG.load(folder, accelerator="cpu")


def answer(model, adata):
    names = [str(name) for name in model.candidates_[:2]]
    return np.asarray(model.predict(adata, perturbations=names, counts=False, n_cells=5).X)


# --- full disks


def disk(options):
    """Fill a file system of random size while each kind of file is written."""
    base = small_model(options.work / "model")
    model = load(base)
    _run.CHUNK = 100
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(4000, 3)), columns=["value", "best", "x"])

    def perturb(suffix):
        names = [str(name) for name in model.candidates_]
        out = options.work / "disk" / f"v{suffix}"
        ptrag_sc.tl.perturb(model.adata, model, names, out=out, progress=False, overwrite=True)

    kinds = {
        ".h5ad": lambda: perturb(".h5ad"),
        ".zarr": lambda: perturb(".zarr"),
        "model.pt": lambda: model.save(options.work / "disk" / "m", overwrite=True),
        "model.pt and data": lambda: model.save(options.work / "disk" / "m", overwrite=True, save_anndata=True),
        "csv of the cache": lambda: _cache.write_scores(options.work / "disk" / "a.csv", "f", frame),
    }
    mount = options.work / "disk"
    mount.mkdir(exist_ok=True)
    for kind, write in kinds.items():
        largest = {"model.pt": 100, "csv of the cache": 200, ".zarr": 2000}.get(kind, 900)
        results = []
        for _ in range(options.n or 10):
            size = random.randint(12, largest)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(mount)], check=True)
            try:
                results.append(in_a_child(lambda write=write: _on_full_disk(write, mount)))
                left = [entry.name for entry in mount.iterdir() if entry.name.startswith(".")]
                if left:
                    results[-1] += f", left {left[0]}"
            finally:
                subprocess.run(["umount", str(mount)], check=True)
        done = results.count("done")
        report(f"full disk, {kind} ({done} had room)", results)


def _on_full_disk(write, mount):
    try:
        write()
    except OSError as error:
        named = str(mount) in str(error) and "bytes" in str(error)
        return "refused" if named else f"unnamed: {type(error).__name__} {str(error)[:100]}"
    return "done"


# --- damaged and hostile model files


def _outcome(folder, adata, expected):
    """Load and predict; say whether it was refused in the right way, quickly and without much memory."""
    path = folder / "model.pt"
    model = None

    def read():
        nonlocal model
        try:
            model = ptrag_sc.PTRAG.load(folder, adata, accelerator="cpu")
        except Exception as error:
            return "refused" if is_refusal(error, path) else f"obscure {type(error).__name__}: {str(error)[:60]}"
        return "loaded"

    said = within_limits(read)
    if said == "loaded":
        try:
            said = "same" if np.array_equal(answer(model, adata), expected) else "predicts otherwise"
        except Exception as error:
            said = f"fails in predict: {type(error).__name__}"
    return said


def flips(options):
    """Flip one bit of model.pt at a random position."""
    base = small_model(options.work / "model")
    model = load(base)
    expected, original = answer(model, model.adata), (base / "model.pt").read_bytes()
    folder = options.work / "flipped"
    folder.mkdir(exist_ok=True)
    shutil.copy(base / "model.pt", folder)

    def attempt():
        return _outcome(folder, model.adata, expected)

    results = []
    attempt()  # so that the first one is not slower than the others
    for _ in range(options.n or 2000):
        content = bytearray(original)
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        (folder / "model.pt").write_bytes(content)
        results.append(attempt())
    report("bit flips of model.pt", results)
    results = []
    for _ in range((options.n or 2000) // 10):
        (folder / "model.pt").write_bytes(original[: random.randrange(len(original))])
        results.append(attempt())
    report("model.pt cut short", results)


VALUES = [None, True, -1, 0, 10**7, 10**30, 0.5, float("nan"), float("inf"), "", "x", [], {}, [1], {"a": 1}, [[]]]


def contents(options):
    """Write model.pt with the right keys and one wrong content: values of the JSON string, tensors, records."""
    base = small_model(options.work / "model")
    model = load(base)
    expected = answer(model, model.adata)
    stored = torch.load(base / "model.pt", weights_only=True)
    folder = options.work / "wrong"
    folder.mkdir(exist_ok=True)
    shutil.copy(base / "model.pt", folder)
    _outcome(folder, model.adata, expected)  # so that the first one is not slower than the others
    results = Counter()
    for _ in range(options.n or 400):
        kind = random.choice([_wrong_value, _wrong_value, _wrong_tensor, _wrong_archive])
        what = kind(stored, folder / "model.pt")
        signal.alarm(60)  # ends the run if one hangs
        said = _outcome(folder, model.adata, expected)
        signal.alarm(0)
        results[said if said in EXPECTED else f"{said} [{what}]"] += 1
    report("model.pt with wrong content", list(results.elements()))


def _save(stored, path, meta=None):
    """Write a file as an attacker would: with the digest that fits, or in the format that had none."""
    text = stored["json"] if meta is None else json.dumps(meta)
    content = {"tensors": stored["tensors"], "json": text}
    try:
        from ptrag_sc.model._io import digest

        content["digest"] = digest({n: t for n, t in stored["tensors"].items() if isinstance(t, torch.Tensor)}, text)
    except Exception:
        pass
    torch.save(content, path)


def _places(value, place=()):
    """Return all places of a JSON value, a few of each list."""
    found = [place] if place else []
    inner = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))[:2]
    for key, part in inner:
        found += _places(part, (*place, key))
    return found


def _wrong_value(stored, path):
    meta = json.loads(stored["json"])
    place = random.choice([p for p in _places(meta) if p[:2] != ("state", "history") or random.random() < 0.05])
    holder = meta
    for key in place[:-1]:
        holder = holder[key]
    if random.random() < 0.2:
        del holder[place[-1]]
        value = "deleted"
    else:
        value = random.choice(VALUES)
        holder[place[-1]] = value
    _save(stored, path, meta)
    return f"{'/'.join(map(str, place))} = {value!r}"


def _wrong_tensor(stored, path):
    name = random.choice(list(stored["tensors"]))
    tensor = stored["tensors"][name]
    wrong = {
        "nan": tensor.float() * float("nan"),
        "longer": torch.cat([tensor.reshape(-1), tensor.reshape(-1)]),
        "empty": tensor.reshape(-1)[:0],
        "expanded": torch.zeros(1).expand(10**7),
        "double": tensor.double()[None],
        "no tensor": "text",
        "transposed": tensor.T if tensor.ndim == 2 else tensor[None],
        "sparse": torch.zeros(2, 2).to_sparse(),
    }
    how = random.choice([*wrong, "missing", "further"])
    tensors = dict(stored["tensors"])
    if how == "missing":
        del tensors[name]
    elif how == "further":
        tensors[f"{name}.more"] = tensor
    else:
        tensors[name] = wrong[how]
    _save({**stored, "tensors": tensors}, path)
    return f"{name} {how}"


def _wrong_archive(stored, path):
    _save(stored, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickle = next(name for name in records if name.endswith("data.pkl"))
    numbers = [name for name in records if "/data/" in name]
    how = random.choice(["packed zeros", "short record", "swapped", "pickle cut", "zeros behind", "call", "no pickle"])
    packed = zipfile.ZIP_STORED
    if how == "packed zeros":
        records[pickle] += b"\0" * 10**9
        packed = zipfile.ZIP_DEFLATED
    elif how == "short record":
        records[random.choice(numbers)] = b""
    elif how == "swapped":
        one, other = random.sample(numbers, 2)
        records[one], records[other] = records[other], records[one]
    elif how == "pickle cut":
        records[pickle] = records[pickle][: random.randrange(len(records[pickle]))]
    elif how == "zeros behind":
        records[pickle] += b"\0" * 10**6
    elif how == "call":
        records[pickle] = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R."
    else:
        del records[pickle]
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return how


# --- killed processes


def kills(options):
    """Kill a process at random moments while it replaces each kind of target; then read, and write again."""
    base = small_model(options.work / "model")
    model = load(base)
    other = load(base)
    with torch.no_grad():
        other.module.generator.project.weight.add_(1.0)
    other.adata.obs["second"] = 1
    _run.CHUNK = 50
    place = options.work / "killed"
    names = [str(name) for name in model.candidates_[:3]]

    def perturb(suffix):
        return lambda: ptrag_sc.tl.perturb(
            model.adata, model, names, out=place / f"v{suffix}", overwrite=True, progress=False, n_cells=30
        )

    def save(which):
        return lambda: which.save(place, overwrite=True, save_anndata=True)

    def read_saved():
        try:
            found = load(place)
        except ValueError as error:
            return "refused" if "another call" in str(error) else f"unreadable: {error}"
        pair = ("second" in found.adata.obs, bool(found.module.generator.project.weight.mean() > 0.5))
        return "same" if pair in {(False, False), (True, True)} else "mixed pair"

    def read_cells(suffix):
        def read():
            path = place / f"v{suffix}"
            found = anndata.read_h5ad(path) if suffix == ".h5ad" else anndata.read_zarr(path)
            return "same" if found.n_obs and "ptrag" in found.uns else "incomplete"

        return read

    attacks = {
        ".h5ad": (perturb(".h5ad"), perturb(".h5ad"), read_cells(".h5ad")),
        ".zarr": (perturb(".zarr"), perturb(".zarr"), read_cells(".zarr")),
        "save(save_anndata=True)": (save(model), save(other), read_saved),
    }
    _kill_each(attacks, place, options.n or 50)


def _kill_each(attacks, place, n):
    """Run the attacks: for each target two functions that write it in turn, and one that reads it."""
    for kind, (first, second, read) in attacks.items():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        first()
        start = time.monotonic()
        second()
        usual = time.monotonic() - start
        results, n_left, n_refused = [], 0, 0
        for i in range(n):
            write = second if i % 2 else first
            _kill_after(write, random.random() * usual * 1.1)
            n_left += any(entry.name.startswith(".") for entry in place.iterdir())
            said = in_a_child(read)
            n_refused += said == "refused"
            write()  # the next write repairs all
            again = in_a_child(read)
            left = [entry.name for entry in place.iterdir() if entry.name.startswith(".")]
            if again != "same" or left:
                said = f"after the next write: {again}, left {left[:1]}"
            results.append(said)
        report(f"killed, {kind} ({n_left} left parts, {n_refused} refused)", results)


def _kill_after(write, seconds):
    pid = os.fork()
    if pid == 0:
        write()
        os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def exchange(options):
    """Kill between the two renames that replace a folder: the old one must come back."""
    base = small_model(options.work / "model")
    model = load(base)
    path = options.work / "exchange" / "v.zarr"
    path.parent.mkdir()
    name = str(model.candidates_[0])
    rename = Path.rename

    def write(overwrite=True):
        ptrag_sc.tl.perturb(model.adata, model, name, out=path, overwrite=overwrite, progress=False, n_cells=5)

    def dying(self, target):
        result = rename(self, target)
        if self == path:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def attempt():
        Path.rename = dying
        write()

    def check():
        try:
            write(overwrite=False)
        except FileExistsError:
            left = [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")]
            return "same" if anndata.read_zarr(path).n_obs and not left else f"left {left}"
        return "the old one was lost"

    write()
    results = []
    for _ in range(options.n or 10):
        in_a_child(attempt)
        results.append(in_a_child(check))
    report("killed between the two renames of a .zarr", results)


# --- what stands in the place of a target, and two writers


def overwrite(options):
    """Put something of the user in the place of a target: overwrite=True must keep it."""
    base = small_model(options.work / "model")
    model = load(base)
    name = str(model.candidates_[0])

    def write(out, **further):
        ptrag_sc.tl.perturb(model.adata, model, name, out=out, overwrite=True, progress=False, n_cells=5, **further)

    places = ["thesis.txt", "obs/thesis.txt", "X/thesis.txt", "X/c/notes", "images/zarr.json", "uns/.hidden", "link"]
    results = []
    for i, foreign in enumerate(places):
        out = options.work / f"o{i}.zarr"
        write(out)
        file = out / foreign
        file.parent.mkdir(parents=True, exist_ok=True)
        if foreign == "link":
            file.symlink_to(base)
        else:
            file.write_text("mine")
        results.append(_kept(lambda out=out: write(out), lambda file=file: file.exists()))
    for kind in ("link.h5ad", "link.zarr"):
        out, real = options.work / kind, options.work / f"real_{kind}"
        write(real)
        out.symlink_to(real)
        write(out)
        results.append("same" if out.is_symlink() and real.exists() else "the link was replaced")
    fifo = options.work / "pipe.h5ad"
    os.mkfifo(fifo)
    results.append(_kept(lambda: write(fifo), fifo.is_fifo))
    folder = options.work / "folder"
    (folder / "model.pt").mkdir(parents=True)
    (folder / "model.pt" / "thesis.txt").write_text("mine")
    saved = folder / "model.pt" / "thesis.txt"
    results.append(_kept(lambda: model.save(folder, overwrite=True), saved.exists))
    report("overwrite=True of what is not ours", results)


def _kept(write, is_there):
    try:
        write()
    except FileExistsError:
        return "refused" if is_there() else "lost"
    return "replaced"


def writers(options):
    """Start two processes that write one target without overwrite: one of them must fail."""
    base = small_model(options.work / "model")
    model = load(base)
    name = str(model.candidates_[0])
    for suffix in (".h5ad", ".zarr", ""):
        results = []
        for i in range(options.n or 12):
            out = options.work / f"two{i}{suffix}"

            def write(out=out, suffix=suffix):
                if suffix:
                    ptrag_sc.tl.perturb(model.adata, model, name, out=out, progress=False, n_cells=5)
                else:
                    model.save(out, save_anndata=True)

            pids = []
            for _ in range(2):
                pid = os.fork()
                if pid == 0:
                    try:
                        write()
                    except FileExistsError:
                        os._exit(3)
                    except BaseException:
                        traceback.print_exc()
                        os._exit(4)
                    os._exit(0)
                pids.append(pid)
            codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
            if not suffix and codes == [0, 3]:
                load(out)
            results.append("same" if codes == [0, 3] else f"exit codes {codes}")
        report(f"two writers of one {suffix or 'model'}", results)


def readers(options):
    """Read broken files of gene embeddings."""
    for kind, results in faults_readers.readers(options.work, options.n):
        report(kind, results)


def downloads(options):
    """Break downloads and what they keep."""
    for kind, results in faults_downloads.downloads(options.work):
        report(kind, results)


ATTACKS = {f.__name__: f for f in (disk, flips, contents, kills, exchange, overwrite, writers, readers, downloads)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("attacks", nargs="*", help=f"some of {', '.join(ATTACKS)}; none: all")
    parser.add_argument("--n", type=int, help="attempts of each attack; none: as many as the attack needs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file that the counts are added to, as lines of JSON")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp()).resolve()  # a TemporaryDirectory would be removed when the first child ends
    try:
        for name in options.attacks or ATTACKS:
            random.seed(options.seed)
            options.work = folder / name
            options.work.mkdir()
            ROWS.clear()
            ATTACKS[name](options)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.writelines(json.dumps({"group": name, **row}) + "\n" for row in ROWS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
