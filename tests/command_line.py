"""Which screen, and which way to call the command line, do the tests of commands share?"""

import io
from contextlib import redirect_stderr, redirect_stdout
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import scvi
from anndata import AnnData

import ptrag_sc
from ptrag_sc import _cli


@cache
def _simulated(n_cells, n_genes):
    return ptrag_sc.datasets.simulated(
        n_cells=n_cells, n_genes=n_genes, n_perturbations=10, n_cell_types=2, n_combinations=2
    )


def count_screen(*, n_genes=40, n_cells=500):
    """Return counts of a simulated screen, its gene embedding in uns."""
    simulated = _simulated(n_cells, n_genes).copy()
    adata = AnnData(simulated.layers["counts"], obs=simulated.obs, var=simulated.var)
    adata.uns["gene_embedding"] = simulated.uns["gene_embedding"]
    adata.obs["depth"] = np.random.default_rng(0).uniform(500, 5000, adata.n_obs)
    return adata


def run(*arguments):
    """Return exit status, standard output and standard error of the command line."""
    out, err = io.StringIO(), io.StringIO()
    seed = scvi.settings.seed
    with redirect_stdout(out), redirect_stderr(err):
        status = _cli.main([str(argument) for argument in arguments])
    plt.close("all")
    scvi.settings._seed = seed
    return status, out.getvalue(), err.getvalue()
