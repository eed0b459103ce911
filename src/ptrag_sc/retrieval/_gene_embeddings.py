"""What vector does a perturbation have?"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float32, Shaped
from numpy.typing import ArrayLike

from ptrag_sc._validation import listed, shortened, unknown, unusable
from ptrag_sc.data._labels import components, joined
from ptrag_sc.datasets._gene_vectors import gene_names

UNIT_TOLERANCE = 1e-6  # a norm this close to 1 differs by float32 rounding only, so the row is not rescaled
NO_NUMBERS = "cmMSUV"  # kinds of numpy: complex, durations, dates, bytes, text, raw bytes
CANCELLED = 1e-5  # a sum of unit vectors this short is rounding, not a direction
REMEDY = "Add them with ptrag_sc.pp.gene_embedding(adata, genes=[...]), or name their symbols with aliases=."


# Without ==, because comparing arrays gives no single truth value.
@dataclass(frozen=True, eq=False)
class GeneEmbedding:
    """Unit vectors of genes, and of combinations of them.

    Build it with :meth:`from_table` or :meth:`from_uns`, which check the values.

    Parameters
    ----------
    genes
        Symbols (n,).
    vectors
        Rows of unit norm (n, D).
    source
        Where the vectors come from.
    excluded
        Genes of the screen that have no vector and were left out on request.
    """

    genes: Shaped[np.ndarray, " n"]
    vectors: Float32[np.ndarray, "n D"]
    source: str
    excluded: tuple[str, ...] = ()

    @classmethod
    def from_table(
        cls, genes: Iterable[str], vectors: ArrayLike, *, source: str, excluded: Iterable[str] = ()
    ) -> "GeneEmbedding":
        """Check a table and scale its rows to unit norm, except rows that already have it to 1e-6.

        Parameters
        ----------
        genes
            Symbols (n,).
        vectors
            Numbers (n, D).
        source
            Name of the table in messages and ``uns``.
        excluded
            See the class.

        Raises
        ------
        ValueError
            If the shapes differ or the table is empty, or if rows hold NaN, inf or zeros only or names occur twice (the
            message names all of them).

        Examples
        --------
        >>> GeneEmbedding.from_table(["AARS"], [[3.0, 4.0]], source="example").vectors.round(3).tolist()
        [[0.6000000238418579, 0.800000011920929]]
        """
        names = gene_names(genes, source)  # (n,)
        values = _numbers(vectors, source)  # (n, D)
        if values.ndim != 2 or len(values) != len(names) or values.size == 0:
            problem = f"has {len(names)} names for vectors of shape {values.shape}"
            remedy = "Give one vector for each of at least one gene."
            raise ValueError(unusable("Gene embedding", source, problem, remedy))
        # In float64 without a copy of the table in float64, which einsum avoids.
        norms = np.sqrt(np.einsum("nd,nd->n", values, values, dtype=np.float64))  # (n,)
        unique, counts = np.unique(names, return_counts=True)
        if "" in names:
            raise ValueError(unusable("Gene embedding", repr(source), "has a row without a name", "Remove or name it."))
        _refuse(unique[counts > 1], "names more than once", "Keep one row for each gene.", source)
        _refuse(names[~np.isfinite(norms)], "has NaN or infinite values for", "Remove or correct these genes.", source)
        _refuse(names[norms == 0], "has a vector of zeros for", "A gene without information has no row.", source)
        # So a table that was written and read again keeps its bits.
        norms[np.abs(norms - 1) < UNIT_TOLERANCE] = 1
        unit = np.divide(values, norms[:, None], out=np.empty(values.shape, np.float32), casting="same_kind")
        return cls(names, unit, str(source), tuple(str(gene) for gene in excluded))

    @classmethod
    def from_uns(cls, value: object, key: str) -> "GeneEmbedding":
        """Read ``adata.uns[key]``: what :func:`ptrag_sc.pp.gene_embedding` writes, or a DataFrame indexed by symbol.

        Raises
        ------
        TypeError
            If it is neither.
        ValueError
            If its values cannot be used (see :meth:`from_table`).

        Examples
        --------
        >>> frame = pd.DataFrame([[0.0, 2.0]], index=["AARS"])
        >>> GeneEmbedding.from_uns(frame, "gene_embedding").vectors.tolist()
        [[0.0, 1.0]]
        """
        place = f"adata.uns[{key!r}]"
        # A table that the user put there, instead of one that pp.gene_embedding wrote.
        if isinstance(value, pd.DataFrame):
            genes, vectors = frame_arrays(value, place)
            return cls.from_table(genes, vectors, source=place)
        if isinstance(value, Mapping) and {"genes", "vectors", "source"} <= set(value):
            excluded = value.get("excluded", ())
            return cls.from_table(value["genes"], value["vectors"], source=str(value["source"]), excluded=excluded)
        found = f"is a {type(value).__name__}, not a table of genes, vectors and source"
        remedy = f"Write it with ptrag_sc.pp.gene_embedding(adata, ..., key_added={key!r})."
        raise TypeError(unusable("Gene embedding", place, found, remedy))

    def to_uns(self) -> dict[str, object]:
        """Return the table as arrays and a string, which h5ad and zarr keep.

        Examples
        --------
        >>> sorted(GeneEmbedding.from_table(["AARS"], [[1.0]], source="example").to_uns())
        ['excluded', 'genes', 'source', 'vectors']
        """
        # An array, because h5ad and zarr have no tuples.
        excluded = np.array(self.excluded, dtype=str)
        return {"genes": self.genes, "vectors": self.vectors, "source": self.source, "excluded": excluded}

    def missing(self, labels: Iterable[str], sep: str | None) -> list[str]:
        """Return the genes of some perturbation labels that have no vector, sorted.

        Examples
        --------
        >>> GeneEmbedding.from_table(["AARS"], [[1.0]], source="example").missing(["AARS+STAT1", "JAK2"], "+")
        ['JAK2', 'STAT1']
        """
        return sorted({gene for label in labels for gene in components(label, sep)} - set(self.genes.tolist()))

    def rows(self, genes: Iterable[str]) -> Float32[np.ndarray, "m D"]:
        """Return the vectors of single genes, one row each in the order given.

        Raises
        ------
        KeyError
            If a gene has no vector; the message names the closest symbols.

        Examples
        --------
        >>> GeneEmbedding.from_table(["A", "B"], [[1, 0], [0, 1]], source="example").rows(["B", "B"]).tolist()
        [[0.0, 1.0], [0.0, 1.0]]
        """
        wanted = [str(gene) for gene in genes]
        position = {gene: i for i, gene in enumerate(self.genes.tolist())}
        missing = sorted(set(wanted) - set(position))
        if missing:
            remedy = REMEDY
            dropped = [gene for gene in missing if gene in self.excluded]
            if dropped:
                remedy = f"Left out by missing='drop': {listed(dropped)}. {REMEDY}"
            raise KeyError(unknown("Gene", missing, f"the gene embedding {self.source!r}", position, remedy))
        return self.vectors[[position[gene] for gene in wanted]]

    def vectors_for(self, labels: Iterable[str], sep: str | None) -> Float32[np.ndarray, "m D"]:
        """Return one unit vector for each perturbation label.

        A single gene has its row. A combination has the sum of the rows of its genes, scaled to unit norm, so the order
        of its genes does not matter.

        Parameters
        ----------
        labels
            Perturbation labels (m,), the control not among them.
        sep
            What joins the genes of a combination.

        Raises
        ------
        KeyError
            If a gene has no vector.
        ValueError
            If the vectors of a combination cancel.

        Examples
        --------
        >>> table = GeneEmbedding.from_table(["A", "B"], [[1.0, 0.0], [0.0, 1.0]], source="example")
        >>> table.vectors_for(["A", "B+A"], "+").round(2).tolist() == [[1.0, 0.0], [np.float32(0.71), np.float32(0.71)]]
        True
        """
        parts = [components(label, sep) for label in labels]
        rows = self.rows([gene for part in parts for gene in part])  # (genes of all labels, D)
        if not parts:
            return rows.reshape(0, self.vectors.shape[1])
        lengths = np.array([len(part) for part in parts])  # (m,)
        if (lengths == 1).all():
            return rows
        first = np.append(0, np.cumsum(lengths)[:-1])  # (m,) where the genes of each label begin
        sums = np.add.reduceat(rows, first, axis=0, dtype=np.float64)  # (m, D)
        # The rows of single genes stay exact instead of being divided by a norm that is 1 up to rounding.
        norms = np.where(lengths == 1, 1.0, np.linalg.norm(sums, axis=1))  # (m,)
        cancelled = [joined(part, sep) for part, norm in zip(parts, norms, strict=True) if norm < CANCELLED]
        _refuse(cancelled, "has vectors that cancel in", "Such a combination cannot be predicted.", self.source)
        return (sums / norms[:, None]).astype(np.float32)

    def subset(self, genes: Iterable[str]) -> "GeneEmbedding":
        """Return the table of some genes, in the order given.

        Raises
        ------
        KeyError
            If a gene has no vector.

        Examples
        --------
        >>> GeneEmbedding.from_table(["A", "B"], [[1, 0], [0, 1]], source="example").subset(["B"]).genes.tolist()
        ['B']
        """
        chosen = list(genes)
        return GeneEmbedding.from_table(chosen, self.rows(chosen), source=self.source, excluded=self.excluded)


def frame_arrays(frame: pd.DataFrame, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the names (n,) and numbers (n, D) of a DataFrame, whose index or only column of text names the rows.

    Raises
    ------
    ValueError
        If neither names the rows, or a column is not numeric.

    Examples
    --------
    >>> genes, vectors = frame_arrays(pd.DataFrame({"gene": ["AARS"], "0": [0.5]}), "the example")
    >>> genes.tolist(), vectors.tolist()
    (['AARS'], [[0.5]])
    """
    text = [str(name) for name, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    # An index of numbers is the default one of a file whose names are in a column.
    if pd.api.types.is_numeric_dtype(frame.index) and len(text) == 1:
        frame = frame.set_index(text[0])
        text = []
    remedy = "Give symbols as index, numbers in all columns."
    if text:
        problem = f"has columns that are not numbers: {listed(text)}"
        raise ValueError(unusable("Gene embedding", place, problem, remedy))
    if pd.api.types.is_numeric_dtype(frame.index):
        raise ValueError(unusable("Gene embedding", place, "has numbers for names", remedy))
    if frame.index.nlevels > 1 or frame.index.hasnans:
        problem = "has rows without a name, or with several"
        raise ValueError(unusable("Gene embedding", place, problem, remedy))
    return gene_names(frame.index.tolist(), place), frame.to_numpy(dtype=np.float64, na_value=np.nan)


def _numbers(vectors: ArrayLike, source: str) -> np.ndarray:
    try:
        values = np.asarray(vectors)
        if values.dtype.kind in NO_NUMBERS:  # numpy would drop an imaginary part, and count the days of a date
            raise TypeError(f"found: {values.dtype}")
        if values.dtype in (np.float32, np.float64):  # not copied: GenePT has half a gigabyte
            return values
        return values.astype(np.float64)
    except (ValueError, TypeError) as error:
        problem = f"is not a matrix of numbers ({shortened(error)})"
        raise ValueError(unusable("Gene embedding", source, problem, "Give vectors of one width.")) from error


def _refuse(names: Iterable[str], problem: str, remedy: str, source: str) -> None:
    """Raise an error that names the genes, if there are any."""
    refused = list(names)
    if refused:
        raise ValueError(unusable("Gene embedding", repr(source), f"{problem} {listed(refused)}", remedy))
