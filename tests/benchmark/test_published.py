"""Is our published model the one that was recorded, and a slow version of any other size?"""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn import functional as F

from ptrag_sc.retrieval import nearest_neighbours

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONFIG = {"temperature": 0.5, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
VARIANTS = ("state", "vanilla", "ptrag")
# hidden, layers, heads, width of a head, feed-forward, genes, embedding, candidates, sets, cells
SIZES = {"wide heads": (12, 1, 2, 14, 9, 17, 6, 3, 2, 5), "deep and narrow": (10, 4, 5, 2, 31, 8, 21, 1, 4, 3)}


@pytest.fixture
def script(monkeypatch):
    """Import a module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def parity(script):
    return script("parity")


@pytest.fixture
def published(script):
    return script("published.module")


@pytest.fixture
def loading(script):
    return script("published.weights")


def random_weights(variant, size, rng):
    h, layers, heads, width, wide, genes, d, *_ = SIZES[size]
    shapes = {"pert_encoder.0": (h, d), "basal_encoder.0": (h, genes), "project_out.0": (genes, h)}
    if variant == "vanilla":
        shapes |= {f"{name}_enc.0": (h, h) for name in ("query", "key", "value")} | {"project_genept_emb.0": (h, d)}
    if variant == "ptrag":
        shapes |= {"final_project_genept_emb.0": (h, 3 * h), "cell_pert_scorer.0": (h, 3 * h)}
        shapes |= {"cell_pert_scorer.3": (2, h)}
    weights = {f"{name}.weight": rng.normal(size=shape) * 0.3 for name, shape in shapes.items()}
    weights |= {f"{name}.bias": rng.normal(size=shape[0]) * 0.3 for name, shape in shapes.items()}
    if variant == "ptrag":
        weights |= {f"context_input_norm.{kind}": rng.normal(size=3 * h) for kind in ("weight", "bias")}
    stack = "transformer_backbone."
    for layer in range(layers):
        block = f"{stack}layers.{layer}."
        weights |= {block + f"self_attn.{x}_proj.weight": rng.normal(size=(heads * width, h)) * 0.3 for x in "qkv"}
        weights[block + "self_attn.o_proj.weight"] = rng.normal(size=(h, heads * width)) * 0.3
        weights |= {block + f"mlp.{x}_proj.weight": rng.normal(size=(wide, h)) * 0.3 for x in ("gate", "up")}
        weights[block + "mlp.down_proj.weight"] = rng.normal(size=(h, wide)) * 0.3
        weights |= {block + f"{x}_layernorm.weight": rng.normal(size=h) for x in ("input", "post_attention")}
    weights |= {stack + "norm.weight": rng.normal(size=h), stack + "embed_tokens.weight": rng.normal(size=(7, h))}
    weights["batch_encoder.weight"] = rng.normal(size=(3, h))
    return {name: torch.as_tensor(x, dtype=torch.float64) for name, x in weights.items()}


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def rms(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def slow_attention(x, weights, block, heads):
    """Head by head, cell by cell: rotate by the place in the set and look at earlier cells only."""
    q, k, v = (x @ weights[block + f"self_attn.{n}_proj.weight"].T for n in "qkv")
    width = q.shape[-1] // heads
    frequency = 1e4 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)

    def rotated(y, place):
        turned = torch.complex(*y.chunk(2, dim=-1)) * torch.exp(1j * place * frequency)
        return torch.cat([turned.real, turned.imag], dim=-1)

    out = torch.zeros_like(q)
    for a in range(heads):
        part = slice(a * width, (a + 1) * width)
        for s in range(x.shape[1]):
            scores = [
                (rotated(q[:, s, part], s) * rotated(k[:, t, part], t)).sum(-1) / width**0.5 for t in range(s + 1)
            ]
            share = torch.softmax(torch.stack(scores, dim=-1), dim=-1)
            out[:, s, part] = sum(share[:, t, None] * v[:, t, part] for t in range(s + 1))
    return out @ weights[block + "self_attn.o_proj.weight"].T


def slow_published(variant, size, weights, inputs, candidates):
    """The published order of operations in float64: search per cell, concatenation per pair."""
    _, layers, heads, *_ = SIZES[size]
    table, noise = inputs["gene_embeddings"], inputs["gumbel_noise"]
    cells = linear(inputs["control"], weights, "basal_encoder.0")
    query = linear(table[inputs["query"]], weights, "pert_encoder.0")[:, None]
    recorded, penalty = {}, 0.0
    if variant == "state":
        context = cells + query
    elif variant == "vanilla":
        found = linear(table[candidates], weights, "project_genept_emb.0")
        key, value = (linear(found, weights, f"{x}_enc.0") for x in ("key", "value"))
        scores = (linear(cells + query, weights, "query_enc.0")[:, :, None] * key).sum(-1)
        context = (torch.softmax(scores / cells.shape[-1] ** 0.5, -1)[..., None] * value).sum(2)
    else:
        key = linear(table[candidates], weights, "pert_encoder.0")
        pairs = torch.cat([cells[:, :, None].expand_as(key), query[:, :, None].expand_as(key), key], -1)
        gain, shift = (weights[f"context_input_norm.{kind}"] for kind in ("weight", "bias"))
        pairs = F.layer_norm(pairs, pairs.shape[-1:], gain, shift)
        raw = linear(F.gelu(linear(pairs, weights, "cell_pert_scorer.0")), weights, "cell_pert_scorer.3")
        scaled = raw / ((raw - raw.mean()).square().sum() / (raw.numel() - 1)).sqrt()
        soft = torch.softmax((scaled + noise) / 0.5, -1)
        hard = F.one_hot(soft.argmax(-1), 2).to(soft)
        kept = (hard + soft - soft.detach())[..., 1]
        context = (kept[..., None] * linear(pairs, weights, "final_project_genept_emb.0")).sum(2)
        penalty = 0.1 * kept.abs().mean()
        recorded = {"raw_scores": raw, "scaled_scores": scaled, "weights": kept, "context": context}
        recorded["candidates"] = candidates
    h = context + weights["batch_encoder.weight"][inputs["batch"]]
    for layer in range(layers):
        block = f"transformer_backbone.layers.{layer}."
        h = h + slow_attention(rms(h, weights[block + "input_layernorm.weight"]), weights, block, heads)
        x = rms(h, weights[block + "post_attention_layernorm.weight"])
        gate, up = (x @ weights[block + f"mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        h = h + (F.silu(gate) * up) @ weights[block + "mlp.down_proj.weight"].T
    h = rms(h, weights["transformer_backbone.norm.weight"])
    prediction = F.relu(linear(h + cells, weights, "project_out.0"))

    def mean_distance(x, y):
        return (x[:, :, None] - y[:, None]).square().sum(-1).clamp(min=1e-8).sqrt().mean((1, 2))

    target = inputs["target"]
    energy = mean_distance(prediction, target)
    energy = energy - (mean_distance(prediction, prediction) + mean_distance(target, target)) / 2
    recorded |= {"prediction": prediction, "energy_loss_per_set": energy, "loss": energy.mean() + penalty}
    return recorded


def slow_recording(path, size, seed=0):
    """Write a file of the layout of the recorded arrays, computed by the slow version."""
    rng = np.random.default_rng(seed)
    _, _, heads, _, _, genes, d, k, b, s = SIZES[size]
    inputs = {
        "gene_embeddings": rng.normal(size=(11, d)),
        "query": rng.permutation(11)[:b],
        "control": rng.gamma(1.0, size=(b, s, genes)),
        "target": rng.gamma(1.2, size=(b, s, genes)),
        "batch": rng.integers(0, 3, size=(b, s)),
        "gumbel_noise": rng.gumbel(size=(b, s, k, 2)),
    }
    file = {"config": np.array(json.dumps({**CONFIG, "heads": heads}))}
    file |= {f"in/{name}": x.astype(np.float32) if x.dtype == float else x for name, x in inputs.items()}
    tensors = {name: torch.as_tensor(x) for name, x in inputs.items()}
    candidates = torch.as_tensor(np.repeat(rng.integers(0, 11, size=(b, 1, k)), s, axis=1))
    for variant in VARIANTS:
        weights = {n: w.requires_grad_() for n, w in random_weights(variant, size, rng).items()}
        recorded = slow_published(variant, size, weights, tensors, candidates)
        recorded["loss"].backward()
        file |= {f"{variant}/{name}": as_float32(x) for name, x in recorded.items()}
        file |= {f"{variant}/state_dict/{name}": as_float32(w) for name, w in weights.items()}
        file |= {
            f"{variant}/grad_norm/{n}": as_float32(w.grad.norm()) for n, w in weights.items() if w.grad is not None
        }
    np.savez(path, **file)
    return file


def as_float32(x):
    array = x.detach().numpy()
    return array.astype(np.float32) if array.dtype == float else array


def test_recorded_arrays_are_reproduced(parity, capsys, test_data):
    assert parity.main([str(test_data / "golden" / "reference_small.npz")]) == 0
    errors = json.loads(capsys.readouterr().out.splitlines()[-1])["errors"]
    assert set(errors) == set(VARIANTS)
    assert all(row["prediction"] < 1e-6 for row in errors.values())


@pytest.mark.parametrize("size", SIZES)
def test_any_file_of_the_layout_agrees_with_the_slow_version(parity, tmp_path, capsys, size):
    slow_recording(tmp_path / "file.npz", size)
    assert parity.main([str(tmp_path / "file.npz")]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["ptrag/prediction", "ptrag/context", "vanilla/loss", "state/grad_norm/project_out.0.weight"]
)
def test_a_deviation_is_reported(parity, tmp_path, name):
    file = slow_recording(tmp_path / "file.npz", "wide heads")
    np.savez(tmp_path / "other.npz", **{**file, name: file[name] * np.float32(1.01)})
    assert parity.main([str(tmp_path / "other.npz")]) == 1


def test_a_file_may_hold_one_variant(parity, tmp_path):
    file = slow_recording(tmp_path / "file.npz", "wide heads")
    state = {name: x for name, x in file.items() if name.startswith(("config", "in/", "state/"))}
    np.savez(tmp_path / "state.npz", **state)
    assert parity.main([str(tmp_path / "state.npz")]) == 0
    np.savez(tmp_path / "none.npz", config=file["config"])
    with pytest.raises(SystemExit, match="none of the variants"):
        parity.main([str(tmp_path / "none.npz")])


def test_unfit_state_dicts_are_refused(published, loading):
    weights = random_weights("ptrag", "wide heads", np.random.default_rng(0))
    load, table, params = loading.load_published, torch.zeros(5, 6), published.PublishedParams("ptrag", n_heads=2)
    with pytest.raises(ValueError, match="do not belong to variant 'state'"):
        load(weights, table, published.PublishedParams("state", n_heads=2))
    with pytest.raises(KeyError, match=r"refiner\.scorer\.out"):
        load({n: w for n, w in weights.items() if "scorer.3" not in n}, table, params)
    with pytest.raises(KeyError, match=r"encode_cells\.weight"):
        load({}, table, params)
    with pytest.raises(ValueError, match="size mismatch"):
        load({**weights, "project_out.0.bias": torch.zeros(3)}, table, params)
    with pytest.raises(ValueError, match="Variant 'x' does not occur"):
        load(weights, table, published.PublishedParams("x"))


def test_every_renaming_rule_is_used(published, loading):
    names = {n for v in VARIANTS for n in random_weights(v, "wide heads", np.random.default_rng(0))}
    sizes, ours = published.PublishedSizes(17, 6, 12, 1, 28, 9, 3), set()
    for variant in VARIANTS:
        module = published.PublishedModule(torch.zeros(5, 6), sizes, published.PublishedParams(variant, 2))
        ours |= set(module.state_dict())
    assert {loading.our_name(n) for n in names if "embed_tokens" not in n} == ours - {"embeddings"}
    assert len(loading.NAMES) == len({pattern for pattern, _ in loading.NAMES})


def test_the_published_order_of_operations_computes_the_same(script, published):
    torch.manual_seed(0)
    sizes, table = published.PublishedSizes(17, 6, 12, 1, 28, 9), torch.randn(11, 6)
    params = published.PublishedParams("ptrag", 2, dropout=0.0)
    slow = script("published_order").PublishedOrder(table, sizes, params)
    fast = published.PublishedModule(table, sizes, params)
    fast.load_state_dict(slow.state_dict())
    cells, own, noise = torch.rand(4, 5, 17), torch.tensor([3, 0, 10, 3]), -torch.empty(4, 5, 3, 2).exponential_().log()
    unit = F.normalize(table, dim=1)
    candidates = nearest_neighbours(unit[own], unit, own, 3)
    found = slow.search(own, 5, 3)
    assert (found.sort(-1).values == candidates.rows.sort(-1).values[:, None]).all()
    recall = published.recall_of(table[own], found[:, 0])
    mask = torch.ones(4, 5, dtype=torch.bool)
    expected = fast.inference(cells, mask, recall, fast.encode_keys(), found[:, 0], noise)["refined"]
    refined = slow.refine(slow.encode_cells(cells), own, 3, noise)
    torch.testing.assert_close(refined.context, expected.context, rtol=1e-4, atol=1e-5)
    assert torch.equal(refined.weights > 0.5, expected.weights > 0.5)


@pytest.mark.parametrize("causal", [True, False])
def test_padded_cells_change_no_real_cell(published, causal):
    torch.manual_seed(0)
    sizes, table = published.PublishedSizes(17, 6, 12, 2, 28, 9), torch.randn(11, 6)
    params = published.PublishedParams("ptrag", 2, dropout=0.0, causal=causal)
    module = published.PublishedModule(table, sizes, params)
    indices = torch.tensor([[1, 2, 3], [4, 5, 6]])
    recall, keys = published.recall_of(table[:2], indices), module.encode_keys()
    cells, noise, mask = torch.rand(2, 5, 17), torch.randn(2, 5, 3, 2), torch.ones(2, 5, dtype=torch.bool)
    padded = torch.cat([cells, torch.zeros(2, 4, 17)], dim=1), torch.cat([noise, torch.randn(2, 4, 3, 2)], dim=1)
    results = []
    for x, n, m in ((cells, noise, mask), (*padded, torch.cat([mask, torch.zeros(2, 4, dtype=torch.bool)], dim=1))):
        inferred = module.inference(x, m, recall, keys, indices, n)
        results.append(module.generative(inferred["basal"], inferred["refined"].context, m)["cells"][:, :5])
    torch.testing.assert_close(*results)


def test_the_loss_is_half_of_the_biased_statistic_of_the_real_cells(published):
    rng = np.random.default_rng(0)
    x, y = (torch.as_tensor(rng.normal(size=(2, 7, 11)) + shift) for shift in (0.5, 0.0))
    x_mask, y_mask = (torch.as_tensor(np.arange(7) < np.array(n)[:, None]) for n in ((5, 3), (4, 6)))
    for b, value in enumerate(published.published_energy_distance(x, y, x_mask, y_mask)):
        one, other = x[b][x_mask[b]].numpy(), y[b][y_mask[b]].numpy()
        slow = cdist(one, other).mean() - cdist(one, one).mean() / 2 - cdist(other, other).mean() / 2
        np.testing.assert_allclose(value, slow, rtol=1e-10)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_no_good_distance(published, value):
    x, y, mask = torch.randn(2, 5, 3), torch.randn(2, 6, 3), torch.ones(2, 6, dtype=torch.bool)
    x[0, 2, 1] = value
    found = published.published_energy_distance(x, y, mask[:, :5], mask)
    assert not found[0].isfinite()
    assert found[1].isfinite()


@pytest.mark.parametrize("kept", ["some", "all", "none"])
def test_factored_scores_and_sums_equal_the_concatenated_form(script, kept):
    selection, (b, s, k, h) = script("published.selection"), (2, 5, 4, 6)
    torch.manual_seed(0)
    stage = selection.SummedSelection(h, temperature=0.5, dropout=0.0, scaled=True).double()
    for parameter in stage.parameters():
        nn.init.normal_(parameter)
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((b, s, h), (b, h), (b, k, h))]
    weights = {"all": torch.ones(b, s, k), "none": torch.zeros(b, s, k), "some": torch.rand(b, s, k) > 0.5}[kept]
    cells, query, keys = leaves
    thirds = cells[:, :, None].expand(b, s, k, h), query[:, None, None].expand(b, s, k, h)
    pairs = stage.scorer.norm(torch.cat([*thirds, keys[:, None].expand(b, s, k, h)], dim=-1))
    scores = stage.scorer.out(F.gelu(stage.scorer.hidden(pairs)))
    summed = (weights.double()[..., None] * stage.value(pairs)).sum(2)
    variables = [*leaves, *stage.parameters()]
    options = {"allow_unused": True, "retain_graph": True, "materialize_grads": True}
    for fast, slow in ((stage.scorer(*leaves), scores), (stage(*leaves, weights.double()), summed)):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
        gradients = [torch.autograd.grad(x.square().sum(), variables, **options) for x in (fast, slow)]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)
