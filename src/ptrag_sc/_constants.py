"""Which names does the package itself give to things in an AnnData or in a file?"""

SETUP_KEY = "_ptrag_sc"  # adata.uns: the keys that setup_anndata was given
WRITTEN_KEY = "_ptrag_sc_written"  # adata.uns: names in obs and obsm under which the package wrote
DEFAULT_KEY = "ptrag"  # adata.obsm / adata.uns: predictions and their parameters
EMBEDDING_KEY = "gene_embedding"  # adata.uns: the gene embedding table
PERTURBATION_FIELD = "perturbation"  # scvi registry
CELL_TYPE_FIELD = "cell_type"  # scvi registry
SOURCE_SUFFIX = "_source"  # adata.obs: name of the control cell that a prediction was generated from
PREDICTED_SUFFIX = "_predicted"  # adata.obs: whether the row was predicted
COUNTS_LAYER = "counts"  # layer of virtual cells: their counts
COUNTS_SUFFIX = "_counts"  # adata.obsm: counts of predicted cells
RETRIEVAL_SUFFIX = "_retrieval"  # adata.obsm: retrieval weights, cells x candidates
SPLITS = ("train", "val", "test")  # from most to least seen
MODEL_FILE = "model.pt"
