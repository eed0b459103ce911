"""Are rows that are gathered on a device the rows of the matrix, and is the device used when it should be?"""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ptrag_sc.data import CellReader, CellSetDataset
from ptrag_sc.data._device_matrix import DeviceMatrix, fits
from ptrag_sc.data._set_sampler import CellSets

CPU = torch.device("cpu")


def matrices():
    rng = np.random.default_rng(0)
    sparse = sp.random(40, 13, density=0.3, format="csr", dtype=np.float64, random_state=1)
    sparse = sp.vstack([sparse[:5], sp.csr_matrix((1, 13)), sparse[6:]]).tocsr()  # row 5 is empty
    # Twice the entries of row 1, out of order: not canonical.
    twice = sp.csr_matrix((np.ones(4), np.array([3, 1, 3, 0]), np.array([0, 0, 4])), shape=(2, 13))
    return {"csr": sparse, "dense": rng.normal(size=(40, 13)), "not canonical": sp.vstack([sparse, twice]).tocsr()}


@pytest.mark.parametrize("name", ["csr", "dense", "not canonical"])
@pytest.mark.parametrize("columns", [None, np.array([4, 0, 12])])
def test_rows_equal_those_of_the_reader(name, columns):
    reader = CellReader(matrices()[name], columns)
    before = reader.matrix.copy()
    rows = np.array([3, 5, 39, 3, 0, reader.n_obs - 1])
    for indices in (rows, rows[:1], np.array([5]), np.array([], dtype=int)):
        dense = DeviceMatrix(reader, CPU).rows(indices)
        assert dense.dtype == torch.float32
        expected = before[indices].toarray() if sp.issparse(before) else before[indices]
        expected = expected if columns is None else expected[:, columns]
        np.testing.assert_array_equal(dense.numpy(), expected.astype(np.float32))
        np.testing.assert_array_equal(dense.numpy(), reader.rows(indices))
    assert (reader.matrix != before).sum() == 0  # the user's matrix is not touched


class NoSync(TorchDispatchMode):
    """Refuse what makes a host wait for a device: reading a value, or a size that depends on values."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        boolean_index = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in torch.utils._pytree.tree_leaves(args[1:])
        )
        if name in self.REFUSED or (name == "index" and boolean_index):
            raise AssertionError(f"{name} waits for the device")
        if name == "repeat_interleave" and not (kwargs or {}).get("output_size"):
            raise AssertionError("repeat_interleave without output_size waits for the device")
        return function(*args, **(kwargs or {}))


def test_gathering_waits_for_nothing():
    matrix = DeviceMatrix(CellReader(matrices()["csr"]), CPU)
    with NoSync():
        matrix.rows(np.array([3, 5, 39, 3]))
    values = torch.tensor([1, 2])
    for waits in (values.nonzero, values[0].item, lambda: values[values > 1], lambda: values.repeat_interleave(values)):
        with NoSync(), pytest.raises(AssertionError, match="waits for the device"):
            waits()


def slow_batch(matrix, rows, mask):
    dense = np.zeros((*rows.shape, matrix.shape[1]), dtype=np.float32)
    for b, s in np.argwhere(mask):
        dense[b, s] = matrix[rows[b, s]].toarray()
    return dense


@pytest.mark.parametrize("source", [CellReader, lambda m: DeviceMatrix(CellReader(m), CPU)], ids=["host", "device"])
@pytest.mark.parametrize("with_target", [True, False])
def test_a_mini_batch_holds_the_rows_of_its_sets_and_zeros(source, with_target):
    matrix, rng = matrices()["csr"], np.random.default_rng(2)
    control, target = rng.integers(0, 40, (3, 5)), rng.integers(0, 40, (3, 4))
    masks = np.arange(5) < np.array([[5], [2], [4]]), np.arange(4) < np.array([[1], [4], [4]])
    codes = np.arange(3)
    sets = CellSets(codes, codes, codes, target, masks[1], control, masks[0])
    batch = CellSetDataset(source(matrix), with_target=with_target)[sets]
    np.testing.assert_array_equal(batch["control_cells"], slow_batch(matrix, control, masks[0]))
    np.testing.assert_array_equal(batch["control_mask"], masks[0])
    assert ("target_cells" in batch) == with_target
    if with_target:
        np.testing.assert_array_equal(batch["target_cells"], slow_batch(matrix, target, masks[1]))
        assert batch["target_cells"].is_contiguous()


@pytest.mark.parametrize(
    ("kind", "free", "expected"), [("cuda", 2**30, True), ("cuda", 1000, False), ("cpu", 2**30, False)]
)
def test_the_matrix_goes_to_a_cuda_device_with_room(monkeypatch, kind, free, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    for matrix in matrices().values():
        assert fits(CellReader(matrix), torch.device(kind)) == expected
    on_disk = SimpleNamespace(shape=(40, 13), size=520)
    assert not fits(CellReader(on_disk), torch.device(kind))
