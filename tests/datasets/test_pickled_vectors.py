"""Does the reader of pickled vectors agree with pickle.load on honest files, and refuse everything else unexecuted?"""

import copyreg
import io
import pickle
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from ptrag_sc.datasets._pickled_vectors import read_pickled_vectors

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(data: bytes):
    return read_pickled_vectors(io.BytesIO(data), place="hostile.pickle")


def lists(n: int = 5, width: int = 2500) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    return {f"GENE{i}": rng.normal(size=width).tolist() for i in range(n)}


def shared() -> dict[str, list[float]]:
    vector = [0.5, -1.0]
    return {"A": vector, "B": vector, "C": [1.0, 2.0]}


HONEST = {
    "lists longer than a batch and than the buffer": lists(),
    "more genes than a batch": lists(2100, 3),
    "width 1": lists(3, 1),
    "one gene": lists(1, 4),
    "integers among floats": {"A": [1, 2.5, -3], "B": [0.0, 70000, 2**40], "C": [7, 8, 9]},
    "tuples": {"A": (0.5, 1.0), "B": (1, 2.5), "C": (3, 4)},
    "long tuples": {f"G{i}": tuple(v) for i, v in enumerate(lists(3, 1200).values())},
    "one list for two genes": shared(),
    "float64 arrays": {k: np.array(v) for k, v in lists(3, 40).items()},
    "float32 arrays": {k: np.array(v, np.float32) for k, v in lists(3, 400).items()},
    "float16 arrays": {k: np.array(v, np.float16) for k, v in lists(3, 40).items()},
    "big-endian arrays": {k: np.array(v, ">f8") for k, v in lists(3, 40).items()},
    "arrays and lists": {"A": [1.0, 2.0], "B": np.array([3.0, 4.0])},
    "names beyond ASCII": {"β-actin": [1.0], "HLA-A\n": [2.0]},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("write", [pickle.dumps, pickle._dumps], ids=["C", "Python"])
def test_equals_pickle_load(name, protocol, write):
    data = write(HONEST[name], protocol=protocol)
    truth = pickle.loads(data)
    table = read(data)
    assert table.genes.tolist() == list(truth)
    assert table.vectors.dtype == np.float32
    np.testing.assert_array_equal(
        table.vectors, np.array([np.asarray(v, np.float64) for v in truth.values()], np.float32)
    )


def test_reads_a_stream_that_cannot_seek_and_leaves_it_open(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr("x.pickle", pickle.dumps(lists()))
    with zipfile.ZipFile(tmp_path / "a.zip") as files, files.open("x.pickle") as member:
        np.testing.assert_array_equal(
            read_pickled_vectors(member).vectors, np.array(list(lists().values()), np.float32)
        )
        assert not member.closed


def test_memory_stays_near_the_size_of_the_table(tmp_path):
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps(lists(1200, 600)))
    table_bytes = 1200 * 600 * 4
    with path.open("rb") as file:
        tracemalloc.start()
        table = read_pickled_vectors(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert table.vectors.nbytes == table_bytes
    assert peak < 3 * table_bytes  # Python floats alone would be 8 times the table


def hostile(command: str) -> dict[str, bytes]:
    text = command.encode()
    short = b"\x8c" + bytes([len(text)]) + text
    class_ = b"csubprocess\nPopen\n"
    return {
        "GLOBAL and REDUCE": b"cos\nsystem\n(V" + text + b"\ntR.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + short + b"\x85R.",
        "INST": b"(V" + text + b"\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nV" + text + b"\no.",
        "NEWOBJ": b"\x80\x02" + class_ + b"(V" + text + b"\nt\x81.",
        "NEWOBJ_EX": b"\x80\x04" + class_ + short + b"\x85}\x92.",
        "EXT1": b"\x80\x02\x82\xf1(V" + text + b"\ntR.",
        "EXT2": b"\x80\x02\x83\xf1\x00(V" + text + b"\ntR.",
        "EXT4": b"\x80\x02\x84\xf1\x00\x00\x00(V" + text + b"\ntR.",
        "inside a table": b"(dVA\ncos\nsystem\n(V" + text + b"\ntRs.",
        "eval": b"cbuiltins\neval\n(V__import__('os').system('" + text + b"')\ntR.",
    }


RUNS = {"GLOBAL and REDUCE", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "inside a table", "eval"}


@pytest.fixture
def registered_extension():
    copyreg.add_extension("os", "system", 0xF1)
    yield
    copyreg.remove_extension("os", "system", 0xF1)
    copyreg._extension_cache.clear()


@pytest.mark.usefixtures("registered_extension")
@pytest.mark.parametrize("name", hostile(""))
def test_hostile_pickles_are_refused_and_nothing_runs(name, tmp_path):
    sentinel = tmp_path / "ran"
    data = hostile(f"touch {sentinel}")[name]
    with pytest.raises(ValueError, match="nothing was run"):
        read(data)
    assert not sentinel.exists()
    if name in RUNS:  # the attack is a real one
        pickle.loads(data)
        assert sentinel.exists()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"cos\nsystem\n.", r"'os\.system'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"'os\.system'"),
        (b"(ios\nsystem\n.", "INST 'os system'"),
        (b"\x80\x02\x82\x01.", "EXT1 1"),
        (b"Pname\n.", "PERSID 'name'"),
        (b"Vname\nQ.", "BINPERSID"),
        (b"}}b.", "set the state of 'dict'"),
        (b"cnumpy\nndarray\n)R.", r"call 'numpy\.ndarray'"),
        (b"cnumpy\ndtype\ncnumpy\ndtype\nR.", r"call 'numpy\.dtype'"),
        (b"V\n)R.", "call 'str'"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"cnumpy.core.multiarray\nscalar\n.", r"'numpy\.core\.multiarray\.scalar'"),
    ],
)
def test_the_message_names_what_was_refused(data, named):
    with pytest.raises(ValueError, match=named) as caught:
        read(data)
    assert "hostile.pickle" in str(caught.value)


def test_a_module_that_a_pickle_names_is_not_imported():
    sys.modules.pop("this", None)
    with pytest.raises(ValueError, match=r"this\.s"):
        read(b"cthis\ns\n.")
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "holds nothing"),
        ([1.0, 2.0], "not a dict of vectors"),
        ({"A": [1.0, 2.0], "ODD": [1.0]}, "gives 'ODD' 1 numbers, where 'A' has 2"),
        ({1.5: [1.0]}, "no name"),
        ({"A": [[1.0]]}, "not of numbers"),
        ({"A": ["1.0"]}, "not of numbers"),
        ({"A": [True]}, "not of numbers"),
        ({"A": "text"}, "gives 'A' a value of type str"),
        ({"A": 1.0}, "gives 'A' a value of type ndarray"),
        ({"A": {"B": [1.0]}}, "gives 'A' a value of type dict"),
        ({"A": np.ones((2, 2))}, r"shape \(2, 2\)"),
        ({"A": np.array([1, 2])}, "dtype 'i8'"),
        ({"A": np.array(["x"], dtype=object)}, "dtype 'O8'"),
        ({"A": {1.0, 2.0}}, "asks for"),
    ],
)
def test_other_contents_are_refused_by_name(value, problem):
    with pytest.raises(ValueError, match=problem):
        read(pickle.dumps(value))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_a_clear_error(protocol):
    data = pickle.dumps({"A": [1.0, 2.0, 3.5], "B": np.array([4.0, 5.0, 6.0])}, protocol=protocol)
    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"hostile\.pickle (is cut short or damaged|ends before|holds)"):
            read(data[:end])


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # from pickletools, where a damaged byte asks for STRING
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_damaged_bytes_give_a_table_or_a_value_error(protocol):
    rng = np.random.default_rng(protocol)
    data = pickle.dumps({"A": [1.0, 2.0, 3.5], "B": np.array([4.0, 5.0, 6.0])}, protocol=protocol)
    refused = 0
    for _ in range(500):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        try:
            assert read(bytes(damaged)).vectors.ndim == 2
        except ValueError:
            refused += 1
    assert 0 < refused < 500


def test_a_value_beyond_float32_becomes_inf_without_warning(recwarn):
    assert np.isinf(read(pickle.dumps({"A": [1e300]})).vectors).all()
    assert not recwarn.list
