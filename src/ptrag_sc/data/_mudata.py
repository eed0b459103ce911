"""How is a MuData read by functions that need one table of cells and one matrix?"""

from anndata import AnnData
from mudata import MuData

from ptrag_sc._validation import unusable
from ptrag_sc.data._fields import AnnOrMuData, ScreenKeys

COLUMNS = ("perturbation_key", "cell_type_key", "batch_key", "split_key", "time_key")


def as_anndata(adata: AnnOrMuData, keys: ScreenKeys) -> AnnData:
    """Return the object itself, or of a MuData the modality of the expression with what stands beside it.

    ``obs`` holds the columns of the modality, those of the MuData and those that were registered in other modalities;
    ``uns`` and ``obsm`` are those of the MuData. Nothing is copied and nothing may be written into it.

    Raises
    ------
    ValueError
        If the expression is not located, see :meth:`ScreenKeys.expression_holder`.
    """
    if not isinstance(adata, MuData):
        return adata
    holder = keys.expression_holder(adata)
    obs = adata.obs.copy(deep=False)
    for column in holder.obs:
        obs[column] = holder.obs[column].array
    for argument in COLUMNS:
        column = getattr(keys, argument)
        owner = keys.container(adata, argument)
        if column is not None and column in owner.obs:
            obs[column] = owner.obs[column].array
    uns = dict(adata.uns)
    table = keys.container(adata, "embedding_key").uns.get(keys.embedding_key)
    if table is not None:
        uns[keys.embedding_key] = table
    obsm = {name: matrix for name, matrix in adata.obsm.items() if name not in adata.mod}
    layers = dict(holder.layers)
    return AnnData(holder.X, obs=obs, var=holder.var, uns=uns, obsm=obsm, layers=layers)


def require_anndata(adata: object, function: str, *, column: str | None = None) -> None:
    """Refuse a MuData where a function takes one table of cells.

    Parameters
    ----------
    adata
        The object.
    function
        Name of the function, for the line to write.
    column
        Column of ``obs`` that it needs. A MuData that has it in its own ``obs`` is accepted.

    Raises
    ------
    TypeError
        With the modality to pass.
    """
    if not isinstance(adata, MuData) or (column is not None and column in adata.obs):
        return
    having = [name for name, part in adata.mod.items() if column is None or column in part.obs]
    name = next(iter(having or adata.mod), "rna")
    remedy = f"Pass one modality: {function}(mdata[{name!r}], ...)."
    raise TypeError(unusable("A MuData", function, "is no single table of cells", remedy))
