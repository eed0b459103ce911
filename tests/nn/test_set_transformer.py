"""Does the generator treat a set as a set, and leave cells alone where there is no context?"""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from ptrag_sc.nn import CellEncoder, EmbeddingEncoder, SetTransformer


@pytest.fixture
def generator():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(9, 4))[0].T
    model = SetTransformer(8, n_layers=2, n_heads=2, basis=basis.contiguous(), dropout=0.0)
    for block in model.blocks:
        nn.init.normal_(block.gates.weight)
    return model.eval()


def tensors(n_cells=6):
    torch.manual_seed(1)
    return torch.randn(3, n_cells, 8), torch.randn(3, n_cells, 8), torch.ones(3, n_cells, dtype=torch.bool)


def test_zero_context_changes_nothing_exactly(generator):
    hidden, context, mask = tensors()
    assert torch.equal(generator(hidden, torch.zeros_like(context), mask), torch.zeros(3, 6, 9))


def test_untrained_gates_change_nothing_but_learn(generator):
    for block in generator.blocks:
        nn.init.zeros_(block.gates.weight)
    hidden, context, mask = tensors()
    change = generator(hidden, context, mask)
    assert torch.equal(change, torch.zeros(3, 6, 9))
    (change * torch.randn(3, 6, 9)).sum().backward()
    assert all((block.gates.weight.grad != 0).any() for block in generator.blocks)


def test_permuting_cells_permutes_the_output(generator):
    hidden, context, mask = tensors()
    order = torch.randperm(6)
    permuted = generator(hidden[:, order], context[:, order], mask)
    torch.testing.assert_close(permuted, generator(hidden, context, mask)[:, order], atol=1e-5, rtol=1e-5)


def test_padding_is_invisible(generator):
    hidden, context, mask = tensors()
    padded = [torch.cat([x, torch.full_like(x[:, :3], 50.0)], dim=1) for x in (hidden, context)]
    longer = torch.cat([mask, torch.zeros(3, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(
        generator(*padded, longer)[:, :6], generator(hidden, context, mask), atol=1e-5, rtol=1e-5
    )


def test_cells_of_a_set_see_each_other_and_no_other_set(generator):
    hidden, context, mask = tensors()
    base = generator(hidden, context, mask)
    moved = hidden.clone()
    moved[0, 0] = torch.randn(8) * 3
    change = (generator(moved, context, mask) - base).abs().amax(-1)
    assert (change[0, 1:] > 1e-6).all()
    assert (change[1:] == 0).all()


def test_output_lies_in_the_basis(generator):
    change = generator(*tensors())
    basis = generator.basis
    torch.testing.assert_close(change @ basis.T @ basis, change, atol=1e-4, rtol=1e-4)


def test_encoders():
    torch.manual_seed(0)
    encoder = EmbeddingEncoder(400, 16)
    assert torch.equal(encoder(torch.zeros(2, 400)), torch.zeros(2, 16))
    rows = torch.nn.functional.normalize(torch.randn(500, 400), dim=-1)
    assert 0.3 < encoder(rows).std().item() < 1.0  # order one, whatever the width
    cells = torch.randn(2, 5, 7)
    encode = CellEncoder(7, 16)
    torch.testing.assert_close(encode(cells)[1, 3], encode(cells[1:, 3:4])[0, 0])


def test_shapes_are_checked_at_every_call(generator):
    hidden, context, mask = tensors()
    with pytest.raises(TypeCheckError, match="mask"):
        generator(hidden, context, mask[:, :5])
