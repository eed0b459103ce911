"""Where does the label of a point stand, so that no label covers another?"""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from ptrag_sc.pl._finish import LINE_COLOUR, SMALL

GAPS = (4, 9, 16, 25, 36, 50, 66)  # points between a point and its label
ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
RADIUS = 2.2  # of a point

# Prices of a place; covering a point costs 1.
FORBIDDEN = 1e4  # covering a label or leaving the axes
DISTANCE = 0.2  # distance from the point, per typographic point


class Labels(Artist):
    """Names beside points, each joined to its point by a thin line.

    Greedy: every label takes, in the order given, the place around its point that covers no earlier label, stays
    inside the axes, covers few points and lies near. The places are found anew whenever the axes are drawn, because
    only then is their size final.

    Parameters
    ----------
    ax
        Axes to write into.
    points
        (n, 2) positions to label, data units.
    names
        n labels.
    avoid
        A text that is already drawn and must stay readable.
    cover
        (m, 2) all points of the plot, data units.
    """

    def __init__(self, ax: Axes, points: np.ndarray, names: list[str], *, avoid: Text, cover: np.ndarray):
        super().__init__()
        self.points, self.avoid, self.cover = points, avoid, cover
        self.notes = [_note(ax, name, point) for name, point in zip(names, points, strict=True)]
        self.set_zorder(self.avoid.get_zorder() - 0.5)  # drawn, hence placed, before the texts
        self.set_in_layout(False)
        ax.add_artist(self)

    def draw(self, renderer: RendererBase) -> None:
        """Place the labels; they draw themselves."""
        scale = renderer.points_to_pixels(1)
        frame = self.axes.get_window_extent(renderer)
        pixels, crowd = (self.axes.transData.transform(points) for points in (self.points, self.cover))
        taken = [self.avoid.get_window_extent(renderer)]
        for note, pixel in zip(self.notes, pixels, strict=True):
            box = Text.get_window_extent(note, renderer)  # of an Annotation: the box would include the line
            size = np.array([box.width, box.height])
            offsets = _offsets(size / scale)
            boxes = [Bbox.from_bounds(*(pixel + offset * scale - size / 2), *size) for offset in offsets]
            covered = [_n_covered(box.padded(RADIUS * scale), crowd) for box in boxes]
            fouls = [box.count_overlaps(taken) + (not _holds(frame, box)) for box in boxes]
            best = np.argmin(covered + FORBIDDEN * np.array(fouls) + DISTANCE * np.hypot(*offsets.T))
            note.set_position(offsets[best])
            taken.append(boxes[best])


def _note(ax: Axes, name: str, point: np.ndarray) -> Annotation:
    return ax.annotate(
        name,
        point,
        xytext=(0, 0),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=SMALL,
        path_effects=[withStroke(linewidth=2, foreground="white")],
        arrowprops={"arrowstyle": "-", "lw": 0.6, "color": LINE_COLOUR, "shrinkA": 0, "shrinkB": 2},
    )


def _offsets(size: np.ndarray) -> np.ndarray:
    """(n, 2) places of a label's centre relative to its point, nearest first; all in points."""
    directions = np.column_stack([np.cos(ANGLES), np.sin(ANGLES)])
    return np.concatenate([directions * (size / 2 + gap) for gap in GAPS])


def _n_covered(box: Bbox, pixels: np.ndarray) -> int:
    return int(((pixels > box.min) & (pixels < box.max)).all(axis=1).sum())


def _holds(frame: Bbox, box: Bbox) -> bool:
    return bool((frame.min <= box.min).all() and (box.max <= frame.max).all())
