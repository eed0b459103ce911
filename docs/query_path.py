"""Which carrier makes which on the way of a query? Draws the figure of architecture.md: `python docs/query_path.py`."""

from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

OUT = Path(__file__).parent / "_static" / "query_path.svg"
INK, QUIET = "#1b1f24", "#4d5763"
CALL, BATCH, LEARNED, OUTSIDE = "#dbe9f8", "#fdf1cf", "#d9f0dd", "#eceef1"
HEIGHT = 0.78  # of a box, in inches
LEFT, RIGHT, WIDTH = 0.25, 4.25, 3.5  # of the two columns, in inches


class Box(NamedTuple):
    """A carrier, with its lower left corner in inches."""

    x: float
    y: float
    width: float
    title: str
    lines: str
    colour: str

    @property
    def middle(self) -> float:
        """Middle of the box, from left to right."""
        return self.x + self.width / 2

    @property
    def top(self) -> tuple[float, float]:
        """Middle of the upper edge."""
        return self.middle, self.y + HEIGHT

    def draw(self, ax) -> None:
        """Draw the box and its text."""
        shape = FancyBboxPatch(
            (self.x, self.y), self.width, HEIGHT, "round,pad=0,rounding_size=0.08", fc=self.colour, ec=QUIET, lw=0.8
        )
        ax.add_patch(shape)
        ax.text(
            self.middle, self.y + HEIGHT - 0.17, self.title, ha="center", va="center", color=INK, weight="bold", size=10
        )
        lower = self.y + (HEIGHT - 0.28) / 2
        ax.text(self.middle, lower, self.lines, ha="center", va="center", color=INK, size=8.5, linespacing=1.35)


def arrow(ax, start, end, label) -> None:
    """Draw an arrow, with a label to the right of its middle."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": QUIET, "lw": 1.1, "shrinkA": 0, "shrinkB": 0})
    x, y = (start[0] + end[0]) / 2 + 0.08, (start[1] + end[1]) / 2
    ax.text(x, y, label, ha="left", va="center", color=QUIET, size=8.5)


WIDE = RIGHT + WIDTH - LEFT
BOXES = {
    box.title: box
    for box in (
        Box(LEFT, 7.72, WIDE, "Screen", "reader of X · index (codes of cells) · genes (G) · cell names (n)", CALL),
        Box(LEFT, 6.44, WIDTH, "Request", "sets in order · source (N) · query (N)", CALL),
        Box(LEFT, 5.16, WIDTH, "CellSets", "query, cell_type (B)\nrows and masks of cells (B, S)", BATCH),
        Box(LEFT, 3.88, WIDTH, "mini-batch", "control_cells (B, S, G), mask (B, S)\nquery, cell_type (B)", BATCH),
        Box(RIGHT, 6.44, WIDTH, "MemoryView", "entries, elsewhere, own (V, P, L)\nmean shift (V, G)", CALL),
        Box(
            RIGHT,
            5.16,
            WIDTH,
            "QueryTable",
            "vectors (Q, D) · row (Q) · components (Q, M)\nneighbours (C, K) · keys (P, H)",
            CALL,
        ),
        Box(
            RIGHT,
            3.88,
            WIDTH,
            "Recall",
            "vectors (B, D) · mean shift (B, G)\nown, components, neighbours (B, k)",
            BATCH,
        ),
        Box(
            LEFT,
            2.6,
            WIDE,
            "Refined",
            "context (B, S, H) · weights and gates (B, S, J)\nthe generator turns context and cells into new cells",
            LEARNED,
        ),
        Box(LEFT, 1.32, WIDTH, "PredictedSets", "cells (B, S, G)\nwhat they rest on (B, J), (B, S, J)", BATCH),
        Box(RIGHT, 1.32, WIDTH, "loss (training)", "generated against target_cells (B, S, G)", OUTSIDE),
        Box(LEFT, 0.16, WIDTH, "Prediction", "cells (N, G) · weights (N, P), sparse", CALL),
    )
}
# Carriers that lie one above the other, with the function that makes the lower one.
STEPS = (
    ("Screen", "Request", "request_cells,\nPopulation.pieces"),
    ("Screen", "MemoryView", "and ResponseMemory:\nview_memory"),
    ("Request", "CellSets", "SequentialSets\n(training: RandomSets)"),
    ("CellSets", "mini-batch", "CellSetDataset"),
    ("MemoryView", "QueryTable", "labels, embeddings:\nmake_query_table"),
    ("QueryTable", "Recall", "QueryTable.recall"),
    ("mini-batch", "Refined", "PTRAGModule.inference"),
    ("Recall", "Refined", ""),
    ("Refined", "PredictedSets", "generative, predict_batch"),
    ("Refined", "loss (training)", "generative"),
    ("PredictedSets", "Prediction", "assemble"),
)
LEGEND = ((CALL, "once per call"), (BATCH, "for each mini-batch"), (LEARNED, "learned, for each cell"))


def draw(ax) -> None:
    """Draw boxes, arrows and legend."""
    for box in BOXES.values():
        box.draw(ax)
    arrow(ax, (LEFT + WIDE / 2, 8.86), BOXES["Screen"].top, "AnnData, keys: read_screen")
    for upper, lower, label in STEPS:
        x = min((BOXES[upper], BOXES[lower]), key=lambda box: box.width).middle  # of the narrow one of the two
        arrow(ax, (x, BOXES[upper].y), (x, BOXES[lower].y + HEIGHT), label)
    across = BOXES["mini-batch"].y + HEIGHT / 2
    arrow(ax, (LEFT + WIDTH, across), (RIGHT, across), "")
    between = (LEFT + WIDTH + RIGHT) / 2
    ax.text(between, across + 0.59, "query,\ncell_type", ha="center", va="center", color=QUIET, size=8.5)
    for row, (colour, text) in enumerate(LEGEND):
        y = 0.82 - row * 0.27
        style = "round,pad=0,rounding_size=0.04"
        ax.add_patch(FancyBboxPatch((RIGHT, y), 0.3, 0.17, style, fc=colour, ec=QUIET, lw=0.8))
        ax.text(RIGHT + 0.42, y + 0.085, text, ha="left", va="center", color=INK, size=8.5)


def main() -> None:
    """Draw and save the figure."""
    # Text stays text: it can be searched, and the file is small.
    mpl.rcParams.update({"svg.hashsalt": "query_path", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure, ax = plt.subplots(figsize=(8, 9))
    figure.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(0, 8), ylim=(0.1, 9.1))
    ax.axis("off")
    draw(ax)
    figure.savefig(OUT, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
