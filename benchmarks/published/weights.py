"""How do weights of the published code become weights of :class:`PublishedModule`?"""

import re

import torch
from jaxtyping import Float
from torch import Tensor

from ptrag_sc._validation import listed, unusable
from published.module import PublishedModule, PublishedParams, PublishedSizes

# Names in the published state_dict and what they are called here.
NAMES = (
    (r"^pert_encoder\.0\.", "encode_embedding."),
    (r"^basal_encoder\.0\.", "encode_cells."),
    (r"^batch_encoder\.", "encode_batch."),
    (r"^project_out\.0\.", "project."),
    (r"^transformer_backbone\.norm\.", "generator.norm."),
    (r"^transformer_backbone\.layers\.(\d+)\.self_attn\.(.)_proj\.", r"generator.blocks.\1.attention.\2."),
    (r"^transformer_backbone\.layers\.(\d+)\.mlp\.(\w+)_proj\.", r"generator.blocks.\1.\2."),
    (r"^transformer_backbone\.layers\.(\d+)\.input_layernorm\.", r"generator.blocks.\1.norm_attention."),
    (r"^transformer_backbone\.layers\.(\d+)\.post_attention_layernorm\.", r"generator.blocks.\1.norm_feed_forward."),
    (r"^context_input_norm\.", "refiner.scorer.norm."),
    (r"^cell_pert_scorer\.0\.", "refiner.scorer.hidden."),
    (r"^cell_pert_scorer\.3\.", "refiner.scorer.out."),
    (r"^final_project_genept_emb\.0\.", "refiner.value."),
    (r"^project_genept_emb\.0\.", "refiner.encode_candidates."),
    (r"^(query|key|value)_enc\.0\.", r"refiner.\1."),
)
UNUSED = "transformer_backbone.embed_tokens.weight"  # of words: the generator never reads words


def our_name(name: str) -> str:
    """Return the name that a published tensor has in :class:`PublishedModule`; an unknown one is returned as it is."""
    for pattern, ours in NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, ours, name)
    return name


def load_published(
    state_dict: dict[str, Tensor], embeddings: Float[Tensor, "P D"], params: PublishedParams
) -> PublishedModule:
    """Return a module with the weights of the published code; widths and depth follow from their shapes.

    Parameters
    ----------
    state_dict
        Tensors under their published names; the unused table of word embeddings may be missing.
    embeddings
        Gene embedding rows (P, D) that candidates refer to.
    params
        Variant and constants.

    Raises
    ------
    KeyError
        If tensors of the variant are missing.
    ValueError
        If there are others, or a shape does not fit.
    """
    known = {our_name(name): torch.as_tensor(tensor) for name, tensor in state_dict.items() if name != UNUSED}
    module = PublishedModule(embeddings, _sizes(known), params)
    expected = {name for name in module.state_dict() if name != "embeddings"}
    if missing := sorted(expected - set(known)):
        what = f"Tensors {listed(missing)} of variant {params.variant!r}"
        raise KeyError(unusable(what, "the state_dict", "are missing", "Pass the variant that the file holds."))
    if left := sorted(set(known) - expected):
        what = f"Tensors {listed(left)}"
        raise ValueError(
            unusable(what, "the state_dict", f"do not belong to variant {params.variant!r}", "Pass their variant.")
        )
    try:
        module.load_state_dict({**known, "embeddings": module.embeddings})
    except RuntimeError as error:
        raise ValueError(unusable("A tensor", "the state_dict", f"does not fit: {error}", "Check the file.")) from error
    return module


def _sizes(known: dict[str, Tensor]) -> PublishedSizes:
    first = "generator.blocks.0."
    needed = ("encode_cells.weight", "encode_embedding.weight", first + "attention.q.weight", first + "gate.weight")
    if missing := [name for name in needed if name not in known]:
        remedy = "Pass the state_dict of a published model."
        raise KeyError(unusable(f"Tensors {listed(missing)}", "the state_dict", "are missing", remedy))
    cells, embedding, attention, feed_forward = (known[name].shape for name in needed)
    blocks = {name.split(".")[2] for name in known if name.startswith("generator.blocks.")}
    n_batches = known["encode_batch.weight"].shape[0] if "encode_batch.weight" in known else 0
    return PublishedSizes(cells[1], embedding[1], cells[0], len(blocks), attention[0], feed_forward[0], n_batches)
