"""From which form of predicted cells is a metric computed?"""

from collections.abc import Iterable

from ptrag_sc.metrics import Metric

SMOOTH, COUNTS, AS_GIVEN = "smooth", "counts", "as given"  # forms of predicted cells


def by_form(metrics: dict[str, Metric], forms: Iterable[str]) -> dict[str, dict[str, Metric]]:
    """Return which metrics are computed from which of the forms that there are.

    Means are smooth, without the noise of counts; sets of cells and tests of genes need counts.
    """
    known = list(forms)
    chosen: dict[str, dict[str, Metric]] = {}
    for name, row in metrics.items():
        form = known[0]
        if len(known) > 1:
            form = SMOOTH if row.level in ("means", "panel") else COUNTS
        chosen.setdefault(form, {})[name] = row
    return chosen
