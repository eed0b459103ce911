"""How does a file become a store that models are trained from, in the shell?"""

import argparse
import logging

from ptrag_sc._cli._preparation import keys_of
from ptrag_sc._cli._results import check_file, settings_file, write_settings
from ptrag_sc._cli._screens import on_scale, read_file, wants_counts
from ptrag_sc.datasets import write_store

logger = logging.getLogger(__name__)


def prepare(options: argparse.Namespace) -> None:
    """Write a store; the matrix of an h5ad or zarr file is never in memory as a whole, unless a layer is normalised."""
    check_file(options.out, (".zarr",), options)
    in_pieces = not wants_counts(options) or (options.size_factors is None and options.counts_layer is None)
    adata = read_file(options.screen, modality=options.modality, backed=in_pieces)
    if not in_pieces:
        adata, _ = on_scale(adata, options, options.screen)
    counts = in_pieces and wants_counts(options)
    path = write_store(adata, options.out, **keys_of(options), counts=counts, overwrite=options.overwrite)
    write_settings(settings_file(path), options, n_cells=adata.n_obs)
    n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    logger.info("%s holds %d cells x %d genes in %.0f MB.", path, adata.n_obs, adata.n_vars, n_bytes / 1e6)
