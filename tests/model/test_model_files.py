"""Is the file of a model checked like input from a stranger, and is each stored version read?"""

import json
import random
import resource
import shutil
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import ptrag_sc
from ptrag_sc.data import _disk_space
from ptrag_sc.model._io import digest, read_model, write_model
from ptrag_sc.model._stored_tensors import DamagedError, read_stored
from screens import KEYS, make_screen

STORED = Path(__file__).parent / "stored"
NEWEST = STORED / "format4.pt"
# Mean over genes of what the models predicted for G0 and G1+G2 when they were stored. Both were trained for two epochs
# on make_screen(n_obs=480, n_genes=12) with n_candidates=4, n_hidden=4, n_layers=1, n_heads=2 and seed 0.
PREDICTED = [0.9075, 1.6383, 1.3100, 0.9643, 1.3951, 1.5134, 2.2566, 1.5312, 0.9153, 1.1134, 1.2883, 0.1978]


@pytest.fixture(scope="module")
def small_screen():
    adata = make_screen(n_obs=480, n_genes=12)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    return adata


def as_model(path, folder):
    """Put a file where a model is loaded from."""
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "model.pt")
    return folder


@pytest.mark.parametrize("path", sorted(STORED.glob("*.pt")), ids=lambda path: path.stem)
def test_stored_files_of_every_format_are_read(small_screen, tmp_path, path):
    assert path.stat().st_size < 30_000
    model = ptrag_sc.PTRAG.load(as_model(path, tmp_path / "m"), small_screen, accelerator="cpu")
    predicted = model.predict(perturbations=["G0", "G1+G2"], counts=False)
    np.testing.assert_allclose(predicted.to_df().mean(), PREDICTED, atol=2e-4)
    model.save(tmp_path / "again")
    again = ptrag_sc.PTRAG.load(tmp_path / "again", small_screen, accelerator="cpu")
    np.testing.assert_array_equal(again.predict(perturbations=["G0", "G1+G2"], counts=False).X, predicted.X)
    assert again.effect_errors_.to_json() == model.effect_errors_.to_json()


def test_the_first_files_of_format_3_are_read(small_screen, tmp_path):
    """They lack what was added while the number stayed."""
    stored = read_stored(STORED / "format3.pt")
    meta = json.loads(stored["json"])
    del meta["drift_cell_types"], meta["init_params"]["residual"], meta["init_params"]["null_weight"]
    for row in meta["state"]["effect_errors"]:
        del row["control"]
    torch.save({**stored, "json": json.dumps(meta)}, tmp_path / "model.pt")
    model = ptrag_sc.PTRAG.load(tmp_path, small_screen, accelerator="cpu")
    assert (model.module.params.residual, model.drift_) == ("anchored", None)
    assert not any(errors.control.any() for errors in model.effect_errors_.of.values())
    predicted = model.predict(perturbations=["G0", "G1+G2"], counts=False)
    np.testing.assert_allclose(predicted.to_df().mean(), PREDICTED, atol=2e-4)


def test_damage_is_refused_by_name(tmp_path):
    """Single bits, and files that are cut short; what is not refused holds the same."""
    original, path, chance = NEWEST.read_bytes(), tmp_path / "model.pt", random.Random(0)
    expected = read_model(NEWEST)
    damaged = [bytearray(original) for _ in range(120)]
    for content in damaged:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    damaged += [original[: chance.randrange(len(original))] for _ in range(30)]
    n_refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            found = read_model(path)
        except ValueError as error:
            assert str(path) in str(error)
            n_refused += 1
        else:
            assert found.meta == expected.meta
            assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert n_refused > 110


def rewritten(path, change, *, number=4):
    """Change the description of a file and write it as an attacker would, with a digest that fits."""
    stored = read_stored(NEWEST)
    meta = {**json.loads(stored["json"]), "format": number}
    tensors = dict(stored["tensors"])
    change(meta, tensors)
    text = json.dumps(meta)
    plain = [name for name, t in tensors.items() if isinstance(t, torch.Tensor) and not t.is_sparse]
    real = {name: tensors[name] for name in plain if tensors[name].numel() < 10**9}
    torch.save({"tensors": tensors, "json": text, "digest": digest(real, text)}, path)


def at(place, value):
    """A change that puts a value into one place of the description."""

    def change(meta, tensors):
        *way, last = place.split("/")
        for name in way:
            meta = meta[int(name) if isinstance(meta, list) else name]
        meta[int(last) if isinstance(meta, list) else last] = value

    return change


def tensor(name, make):
    def change(meta, tensors):
        tensors[name] = make(tensors[name])

    return change


def without(name, of="tensors"):
    def change(meta, tensors):
        del (tensors if of == "tensors" else meta[of] if of in meta else meta)[name]

    return change


MODULE, VECTORS = "module.", "gene_embedding.vectors"
WRONG = {
    "version": (at("version", "99.0"), "Update ptrag_sc"),
    "no version": (at("version", "x y"), "holds the version"),
    "genes": (at("genes/0", "gene1"), "repeated names in genes"),
    "no genes": (at("genes", []), "holds no genes"),
    "gene": (at("genes/0", 3), r"holds 3 in .*genes\[0\], where a str"),
    "lost genes": (without("genes", "meta"), "lacks 'genes'"),
    "further": (at("further", 1), "unknown 'further'"),
    "candidates": (at("candidates", ["G1", "G0"]), "training perturbations are not its candidates"),
    "split": (at("split/split/0", "no"), r"holds 'no' in .*split/split\[0\]"),
    "columns": (at("split/n_cells", [1]), "different lengths"),
    "state": (without("state", "meta"), "lacks 'state'"),
    "trained": (at("state/is_trained", 1), "is_trained, where a bool"),
    "epochs": (at("state/n_epochs", -1), "n_epochs, where a whole number"),
    "set size": (at("state/set_size", 0), "set_size of 0"),
    "huge": (at("state/set_size", 10**30), "set_size, where"),
    "history": (at("state/history", {"loss": {"epoch": [0], "value": []}}), "different lengths"),
    "errors": (at("state/effect_errors/0/square/0", float("nan")), r"holds nan in .*square\[0\]"),
    "errors' genes": (at("state/effect_errors/0/square", [1.0]), "number of genes"),
    "lost error": (lambda meta, _: meta["state"]["effect_errors"][0].pop("own_variance"), "lacks 'own_variance'"),
    "kind": (at("state/effect_errors/0/kind", "new"), "kind"),
    "support": (at("state/support/center", [1.0]), "number of features"),
    "layers": (at("init_params/n_layers", 10**7), "holds 1 layers, not the 10000000"),
    "hidden": (at("init_params/n_hidden", 10**6), "holds 'module.encode_cells"),
    "heads": (at("init_params/n_heads", 3), "no multiple of n_heads"),
    "bool": (at("init_params/n_layers", True), "n_layers, where"),
    "loss": (at("init_params/loss", "none"), "'none' does not occur"),
    "parameter": (at("init_params/more", 1), "other parameters"),
    "candidates of all": (at("init_params/n_candidates", 99), "n_candidates than"),
    "keys": (at("keys/sep", ""), "not in the gene embedding"),
    "no cell type": (at("keys/cell_type_key", None), "keys/cell_type_key"),
    "unknown key": (at("keys/separators", "+"), "other keys"),
    "share": (at("own_effects/pooled", "x"), "own_effects/pooled"),
    "memory": (at("init_params/memory", None), "unknown tensor|of shape|as "),
    "nan": (tensor(MODULE + "generator.basis", lambda t: t * float("nan")), "not finite"),
    "longer": (tensor(VECTORS, lambda t: torch.cat([t, t])), "does not fit its names"),
    "no unit": (tensor(VECTORS, lambda t: 2 * t), "no unit vectors"),
    "other rows": (tensor(MODULE + "embeddings", lambda t: t.flip(0)), "not those of their genes"),
    "counts": (tensor(MODULE + "memory_n_cells", lambda t: -1 - t), "negative"),
    "whole": (tensor(MODULE + "memory_mean", lambda t: t.long()), "memory_mean"),
    "basis": (tensor(MODULE + "generator.basis", lambda t: -t), "not that of its memory"),
    "too much": (tensor(MODULE + "recalled_share", lambda t: t * 0 + 7), "between 0 and 1"),
    "expanded": (tensor(VECTORS, lambda t: torch.zeros(1).expand(10**9)), "larger than its record"),
    "sparse": (tensor(VECTORS, lambda t: t.to_sparse()), "refused; nothing was run"),
    "no tensor": (tensor(VECTORS, lambda t: "text"), "something else than tensors"),
    "lost": (without(MODULE + "encode_cells.layers.0.bias"), r"lacks the tensor 'module.encode_cells.layers.0.bias'"),
    "deep": (at("genes", json.loads("[" * 900 + "]" * 900)), "holds a list|used"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_content_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "model.pt"
    rewritten(path, change)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as caught:
        ptrag_sc.PTRAG.load(tmp_path, adata=False)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600
    assert time.perf_counter() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (1, "Train and save"),
        (2, "before the first release"),
        (5, "Update"),
        (-1, "format"),
        (True, "format"),
        ("4", "f"),
    ],
)
def test_other_formats_say_what_reads_them(tmp_path, number, message):
    rewritten(tmp_path / "model.pt", lambda *_: None, number=number)
    with pytest.raises(ValueError, match=message):
        read_model(tmp_path / "model.pt")


def repacked(path, change, packed=zipfile.ZIP_STORED):
    with zipfile.ZipFile(NEWEST) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, content in records.items():
            archive.writestr(f"model/{name}", content)


def pickled(code):
    return lambda records: records.update({"data.pkl": code})


RECORDS = {
    "packed": (lambda records: records.update({"more": b"\0" * 10**7}), zipfile.ZIP_DEFLATED, "compressed record"),
    "short": (lambda records: records.update({"data/0": b""}), 0, "holds 0 bytes"),
    "long": (lambda records: records.update({"data/0": b"\0" * 10**6}), 0, "holds 1000000 bytes"),
    "lost": (lambda records: records.pop("data/0"), 0, "data/0"),
    "no pickle": (lambda records: records.pop("data.pkl"), 0, "no archive of torch.save"),
    "order": (lambda records: records.update({"byteorder": b"big"}), 0, "byte order"),
    "call": (pickled(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R."), 0, "builtins.bytearray"),
    "module": (pickled(b"cos\nsystem\n(X\x04\x00\x00\x00true\x85R."), 0, "os.system"),
    "list": (pickled(b"\x80\x02]."), 0, "something else than a dict"),
    "set": (pickled(b"\x80\x04\x8f."), 0, "EMPTY_SET"),
    "append": (pickled(b"\x80\x02}K\x01a."), 0, "appends to no list"),
    "no end": (pickled(b"\x80\x02}"), 0, "damaged"),
    "empty": (pickled(b""), 0, "damaged"),
    "too long": (pickled(b"\x80\x02" + b"}" * 10**5 + b"."), 0, "too long"),
    "place": (pickled(b"\x80\x02}r\xff\xff\xff\x7f."), 0, "no tensors"),
}


@pytest.mark.parametrize(("change", "packed", "message"), RECORDS.values(), ids=RECORDS)
def test_hostile_archives_are_refused_by_name(tmp_path, change, packed, message):
    path = tmp_path / "model.pt"
    repacked(path, change, packed)
    with pytest.raises(ValueError, match=message) as caught:
        read_model(path)
    assert str(path) in str(caught.value)


def test_tensors_of_every_layout_come_back(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": whole.T,
        "slice": whole[1:3, ::2],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "half": whole.half(),
        "brain": whole.bfloat16(),
        "double": whole.double(),
        "whole": torch.arange(2**33, 2**33 + 5),
    }
    torch.save({"tensors": tensors, "text": "ä"}, tmp_path / "a.pt")
    found = read_stored(tmp_path / "a.pt")
    assert found["text"] == "ä"
    for name, expected in tensors.items():
        assert found["tensors"][name].dtype == expected.dtype
        assert torch.equal(found["tensors"][name], expected)
    torch.save({"a": [whole]}, tmp_path / "a.pt")
    with pytest.raises(DamagedError, match="a list where a tensor was expected"):
        read_stored(tmp_path / "a.pt")


def test_a_slice_takes_only_its_own_place(tmp_path):
    content = read_model(NEWEST)
    large = torch.zeros(10**6)
    large[: content.tensors[VECTORS].numel()] = content.tensors[VECTORS].reshape(-1)
    view = large[: content.tensors[VECTORS].numel()].reshape(content.tensors[VECTORS].shape)
    write_model(tmp_path / "model.pt", content._replace(tensors={**content.tensors, VECTORS: view}))
    assert (tmp_path / "model.pt").stat().st_size < 30_000
    assert torch.equal(read_model(tmp_path / "model.pt").tensors[VECTORS], view)


def test_a_model_is_not_loaded_with_the_data_of_another_call(trained, tmp_path):
    first, second, mixed = (tmp_path / name for name in ("first", "second", "mixed"))
    for folder in (first, second):
        trained.save(folder, save_anndata=True)
        ptrag_sc.PTRAG.load(folder)
    shutil.copytree(first, mixed)
    shutil.copy(second / "model.pt", mixed)
    with pytest.raises(ValueError, match=r"adata.h5ad was saved by another call than model.pt. Pass adata="):
        ptrag_sc.PTRAG.load(mixed)
    assert ptrag_sc.PTRAG.load(mixed, trained.adata.copy()).is_trained
    trained.save(first, overwrite=True)  # without its data
    with pytest.raises(ValueError, match="another call"):
        ptrag_sc.PTRAG.load(first)
    with h5py.File(second / "adata.h5ad", "r+") as file:
        del file["obs"]
    with pytest.raises(ValueError, match=r"adata.h5ad (cannot be read|holds|lacks)"):
        ptrag_sc.PTRAG.load(second)


def test_saving_fails_whole(trained, tmp_path, monkeypatch):
    trained.save(tmp_path, save_anndata=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(part, target, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ptrag_sc.model._saving.write_model", fail)
    with pytest.raises(OSError, match=r"model.pt could not be written: No space"):
        trained.save(tmp_path, save_anndata=True, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("limit", [9_000, 40_000])
def test_a_model_on_a_full_disk(trained, tmp_path, limit):
    """Files that may not grow further stand for a disk that is full."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        with pytest.raises(OSError, match=r"model.pt could not be written: File too large .*bytes") as caught:
            trained.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert caught.value.errno in _disk_space.FULL
    assert not list(tmp_path.iterdir())
