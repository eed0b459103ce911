"""Where is the label of a point placed, so that no label covers another?"""

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
SPACE = 2.0  # points between two labels
STEPS = np.linspace(0, 1, 12)[:, None]  # points of a line that are looked at

# Costs of a place; covering a point costs 1.
FORBIDDEN = 1e4  # covering a label or leaving the axes
LABELLED = 12  # covering another point that has a label, more than an unnamed one
CROSSING = 30  # a line through another label
DISTANCE = 0.2  # per typographic point between label and point


class Labels(Artist):
    """Names next to points, each joined to its point by a thin line.

    Greedy: every label takes, in the order given, the place around its point that covers no earlier label, stays inside
    the axes, covers few points, is near, and whose line crosses no label. The places are computed whenever the axes are
    drawn, because their size is final only then.

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
        self.points = points
        self.avoid = avoid
        self.cover = cover
        self.notes = [_note(ax, name, point) for name, point in zip(names, points, strict=True)]
        self.set_zorder(self.avoid.get_zorder() - 0.5)  # drawn before the texts, so that they are placed by then
        self.set_in_layout(False)
        ax.add_artist(self)

    def draw(self, renderer: RendererBase) -> None:
        """Place the labels; they draw themselves."""
        assert self.axes is not None  # set by add_artist
        scale = float(np.asarray(renderer.points_to_pixels(1)))
        frame = self.axes.get_window_extent(renderer)
        pixels = self.axes.transData.transform(self.points)  # (n, 2)
        crowd = self.axes.transData.transform(self.cover)  # (m, 2)
        taken = [self.avoid.get_window_extent(renderer)]
        lines = np.empty((0, 2))  # points on the lines of earlier labels
        for note, pixel in zip(self.notes, pixels, strict=True):
            text = Text.get_window_extent(note, renderer)  # the box of the Annotation itself would include the line
            size = np.array([text.width, text.height])
            offsets = _offsets(size / scale)  # (p, 2)
            corners = pixel + offsets * scale - size / 2  # (p, 2), lower left
            boxes = [Bbox.from_bounds(x, y, *size).padded(SPACE * scale, 0) for x, y in corners]
            joined = pixel + STEPS[None] * (offsets * scale)[:, None]  # (p, steps, 2)
            padded = [box.padded(RADIUS * scale) for box in boxes]
            covered = np.array([_n_covered(box, crowd) + LABELLED * _n_covered(box, pixels) for box in padded])  # (p,)
            fouls = np.array([box.count_overlaps(taken) + (not _holds(frame, box)) for box in boxes])  # (p,)
            crossed = np.array([_n_covered(box, lines) > 0 for box in boxes])  # (p,)
            for earlier in taken:
                crossed |= ((joined > earlier.min) & (joined < earlier.max)).all(axis=2).any(axis=1)
            distance = np.hypot(offsets[:, 0], offsets[:, 1])  # (p,)
            best = np.argmin(covered + FORBIDDEN * fouls + CROSSING * crossed + DISTANCE * distance)
            note.set_position(offsets[best])
            taken.append(boxes[best])
            lines = np.concatenate([lines, joined[best]])


def _note(ax: Axes, name: str, point: np.ndarray) -> Annotation:
    return ax.annotate(
        name,
        (point[0], point[1]),
        xytext=(0, 0),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=SMALL,
        path_effects=[withStroke(linewidth=2, foreground="white")],
        arrowprops={"arrowstyle": "-", "lw": 0.6, "color": LINE_COLOUR, "shrinkA": 0, "shrinkB": 2},
    )


def _offsets(size: np.ndarray) -> np.ndarray:
    """Return places (p, 2) of a label's centre relative to its point, nearest first; all in typographic points."""
    directions = np.column_stack([np.cos(ANGLES), np.sin(ANGLES)])
    return np.concatenate([directions * (size / 2 + gap) for gap in GAPS])


def _n_covered(box: Bbox, pixels: np.ndarray) -> int:
    return int(((pixels > box.min) & (pixels < box.max)).all(axis=1).sum())


def _holds(frame: Bbox, box: Bbox) -> bool:
    return bool(np.all(frame.min <= box.min) and np.all(box.max <= frame.max))
