"""Figures of a run, on Matplotlib's figure objects alone: nothing global is used or left over."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from skelpipe.skeleton import Topology

from .colours import COLOURS, GREY, colour

if TYPE_CHECKING:
    from skelpipe.methods.slim_views import ViewGroup

Floats = npt.NDArray[np.float32]

_MARKERS = "os^DvP*X"
_POINTS = 200  # of a curve
_PITCH = 1.4  # metres from one stick figure to the next
_HEIGHT = (-1.2, 1.7)  # metres shown below and above the root, with room for a view's heading


def data_uri(figure: Figure) -> str:
    """A figure as an SVG in a data URI, the same bytes for the same figure."""
    stream = BytesIO()
    with rc_context({"svg.hashsalt": "skelpipe"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def plain(name: str) -> str:
    """A name as Matplotlib must be given it, so that it reads no formula between dollar signs."""
    return name.replace("$", r"\$")


def loss_figure(metrics: Sequence[dict[str, float]], chance: float) -> Figure:
    """Losses, the collapse watch and the learning rate over epochs.

    Args:
        metrics: Records of metrics.jsonl, one a step, at least one.
        chance: ln K, the class-token loss of a network that tells nothing apart.
    """
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    epochs = _binned([record["epoch"] for record in metrics])

    def curves(panel: Axes, title: str, unit: str, names: dict[str, str]) -> None:
        for number, (name, label) in enumerate(names.items()):
            values = _binned([record.get(name, float("nan")) for record in metrics])
            panel.plot(epochs, values, color=colour(number), linewidth=1.6, label=label)
        panel.set_title(title, fontsize=10, loc="left", fontweight="bold")
        panel.set_ylabel(unit)
        panel.grid(color="#E3E6EA", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)

    losses, spread, koleo, rate = axes.flat
    curves(losses, "Losses", "nats", {"glcl": "global-local contrast", "mfm": "masked features"})
    watched = {
        "class_spread": "of the mean class target",
        "class_entropy": "of a class target",
        "patch_entropy": "of a patch target",
    }
    curves(spread, "Entropy of the teacher's targets", "nats", watched)
    for panel in (losses, spread):
        panel.axhline(chance, color="#444444", linewidth=1, linestyle=(0, (4, 3)))
        panel.annotate(
            "ln K",
            (1, chance),
            (-2, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="#444444",
        )
        panel.legend(frameon=False, fontsize=8, loc="best")
    spread.set_ylim(0, chance * 1.12)
    losses.margins(y=0.12)
    curves(koleo, "Total loss, and KoLeo", "", {"loss": "total", "koleo": "KoLeo"})
    koleo.legend(frameon=False, fontsize=8, loc="best")
    curves(rate, "Learning rate", "", {"lr": "learning rate"})
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for panel in (koleo, rate):
        panel.set_xlabel("epoch")
    return figure


def views_figure(
    names: Sequence[str],
    sample_of_body: Sequence[int],
    groups: Sequence[ViewGroup],
    topology: Topology,
) -> Figure:
    """Views as a method drew them: a line for each sample and anchor, a stick figure a token.

    Each stick figure is the middle frame of a temporal token, seen from the front after
    augmentation; joints whose token is masked are hollow and grey.

    Args:
        names: Of the samples.
        sample_of_body: The sample each body belongs to.
        groups: The global views, then the local ones, largest first.
        topology: Joints, bones and body parts.
    """
    lines = [(sample, anchor) for sample in range(len(names)) for anchor in (0, 1)]
    figure = Figure()
    panels = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
    right = 0.0
    for panel, (sample, anchor) in zip(panels, lines, strict=True):
        width = 0.0
        for group in groups:
            width = _draw_group(panel, group, sample, anchor, sample_of_body, topology, width)
        panel.set_title(
            f"{plain(names[sample])}, anchor {anchor + 1}", fontsize=10, loc="left", y=0.98
        )
        panel.axis("off")
        right = max(right, width)
    for panel in panels:
        panel.set_xlim(-_PITCH / 2, right - _PITCH / 2)
        panel.set_ylim(*_HEIGHT)
    # Metres are as long across as upwards.
    scale = 2.0 / (_HEIGHT[1] - _HEIGHT[0])
    figure.set_size_inches(max(scale * right, 7), 2.25 * len(lines) + 0.4)
    top = 1 - 0.55 / figure.get_figheight()
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0, top=top, hspace=0.12)
    handles = [
        Line2D([], [], marker="o", color=colour(number), label=plain(part.replace("_", " ")))
        for number, part in enumerate(topology.parts)
    ]
    hollow = Line2D([], [], marker="o", color=GREY, markerfacecolor="white", linestyle=":")
    hollow.set_label("masked")
    handles.append(hollow)
    figure.legend(handles=handles, ncols=len(handles), loc="upper center", frameon=False)
    return figure


def feature_map_figure(
    features_ND: Floats, labels_N: npt.NDArray[np.int64], classes: Sequence[str]
) -> Figure:
    """Features of length one on their two first principal components, coloured by class.

    Args:
        features_ND: One row a sample.
        labels_N: Class of each.
        classes: Names of all classes; those without a sample are left out.
    """
    unit = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    _, scale, axes_DD = np.linalg.svd(centred, full_matrices=False)
    place_N2 = centred @ axes_DD[:2].T
    share = 100 * scale[:2] ** 2 / (scale**2).sum()

    figure = Figure(figsize=(9, 6), layout="constrained")
    panel = figure.subplots()
    centres = []
    present = np.unique(labels_N)
    for number, label in enumerate(present):
        points = place_N2[labels_N == label]
        panel.scatter(
            points[:, 0],
            points[:, 1],
            s=26,
            alpha=0.75,
            linewidths=0,
            color=colour(number),
            marker=_MARKERS[(number + number // len(COLOURS)) % len(_MARKERS)],
            label=f"{number + 1}  {plain(classes[label])}",
        )
        centres.append(np.median(points, axis=0))
    for number, centre in enumerate(_apart(np.array(centres), 0.03 * np.ptp(place_N2, axis=0))):
        panel.annotate(
            str(number + 1),
            centre,
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    panel.set_xlabel(f"first component ({share[0]:.0f} % of the variance)")
    panel.set_ylabel(f"second component ({share[1]:.0f} %)")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[["top", "right"]].set_visible(False)
    columns = 1 + len(present) // 26
    figure.legend(loc="outside right upper", frameon=False, fontsize=8.5, ncols=columns)
    return figure


def confusion_figure(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Where samples of each class went: shares of a row as shades, counts as numbers.

    Args:
        counts: Rows are true classes, columns predicted ones.
        classes: Names of all classes; those without a sample or prediction are left out.
    """
    table = np.array(counts)
    used = np.flatnonzero(table.sum(0) + table.sum(1)).tolist()
    table = table[np.ix_(used, used)]
    names = [plain(classes[label]) for label in used]
    share = table / table.sum(1, keepdims=True).clip(1)

    side = min(2.6 + 0.42 * len(used), 13)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    font = 9 if len(used) <= 24 else 6
    places = np.arange(len(used))
    panel.set_xticks(places, names, rotation=90, fontsize=font)
    panel.set_yticks(places, names, fontsize=font)
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    panel.set_xticks(places[1:] - 0.5, minor=True)
    panel.set_yticks(places[1:] - 0.5, minor=True)
    panel.grid(which="minor", color="#ECEFF3", linewidth=0.5)
    panel.tick_params(which="both", length=0)
    if len(used) <= 24:
        for row, column in zip(*table.nonzero(), strict=True):
            panel.text(
                column,
                row,
                str(table[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[row, column] > 0.55 else "#222222",
            )
    bar = figure.colorbar(image, ax=panel, shrink=0.6)
    bar.set_label("% of the true class")
    return figure


def horizon_figure(by_horizon: Mapping[str, Mapping[str, float]]) -> Figure:
    """How far predictions are off, by how far ahead they look.

    Args:
        by_horizon: For each network or rule, by its name: mean distances in mm by milliseconds.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    panel = figure.subplots()
    for number, (name, distances) in enumerate(by_horizon.items()):
        panel.plot(
            [float(horizon) for horizon in distances],
            list(distances.values()),
            color=colour(number),
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            linewidth=1.6,
            label=plain(name),
        )
    panel.set_xlabel("ahead, ms")
    panel.set_ylabel("mean distance of a joint, mm")
    panel.set_ylim(bottom=0)
    panel.grid(color="#E3E6EA", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=9)
    return figure


def _binned(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Means of equal runs of values, at most _POINTS of them."""
    parts = np.array_split(np.asarray(values), min(len(values), _POINTS))
    return np.array([part.mean() for part in parts])


def _draw_group(
    panel: Axes,
    group: ViewGroup,
    sample: int,
    anchor: int,
    sample_of_body: Sequence[int],
    topology: Topology,
    left: float,
) -> float:
    """Draw a sample's views of one length side by side from ``left`` on; returns where they end."""
    steps = group.mask_BSJ.shape[1]
    frames = group.x_BWJC.shape[1]
    kind = "global" if bool((group.view_B < 2).all()) else "local"
    views = sorted(
        {
            int(view)
            for view, its_anchor in zip(group.view_B, group.anchor_B, strict=True)
            if int(its_anchor) == anchor
        }
    )
    for view in views:
        rows = [
            row
            for row in range(len(group.view_B))
            if int(group.view_B[row]) == view and sample_of_body[int(group.body_B[row])] == sample
        ]
        masked = 0.0
        for row in rows:
            x_WJC = group.x_BWJC[row].cpu().numpy()
            mask_SJ = group.mask_BSJ[row].cpu().numpy()
            masked = float(mask_SJ.mean())
            height = x_WJC[:, topology.root, 1].mean()
            for step in range(steps):
                middle_JC = x_WJC[(2 * step + 1) * frames // (2 * steps), :, :2]
                across = left + _PITCH * step - middle_JC[topology.root, 0]
                _draw_stick(panel, middle_JC + np.array([across, -height]), mask_SJ[step], topology)
        end = left + _PITCH * (steps - 1)
        panel.plot([left - 0.45, end + 0.45], [1.36, 1.36], color="#444444", linewidth=0.8)
        note = f"{100 * masked:.0f} % masked" if masked else "not masked"
        panel.text(
            (left + end) / 2,
            1.39,
            f"{kind}, {frames} frames\n{note}",
            ha="center",
            va="bottom",
            fontsize=8,
            linespacing=1.2,
        )
        left = end + _PITCH + 0.25
    return left


def _draw_stick(
    panel: Axes, x_JC: Floats, mask_J: npt.NDArray[np.bool_], topology: Topology
) -> None:
    part_of = topology.part_of
    for joint, parent in enumerate(topology.parents):
        if parent < 0:
            continue
        hidden = mask_J[joint] or mask_J[parent]
        panel.plot(
            x_JC[[parent, joint], 0],
            x_JC[[parent, joint], 1],
            color=GREY if hidden else colour(part_of[joint]),
            linewidth=0.8 if hidden else 2,
            linestyle=":" if hidden else "-",
            zorder=1,
        )
    for joint in range(len(x_JC)):
        panel.plot(
            x_JC[joint, 0],
            x_JC[joint, 1],
            marker="o",
            markersize=3.2,
            zorder=2,
            markerfacecolor="white" if mask_J[joint] else colour(part_of[joint]),
            markeredgecolor=GREY if mask_J[joint] else colour(part_of[joint]),
            markeredgewidth=0.8,
        )


def _apart(points_N2: Floats, gap: Floats) -> Floats:
    """Points pushed away from each other until no two are nearer than ``gap``."""
    scaled = points_N2 / gap
    for _ in range(100):
        away = scaled[:, None] - scaled
        distance = np.linalg.norm(away, axis=-1) + np.eye(len(scaled)) * 9
        close = distance < 1.3
        if not close.any():
            break
        push = away / distance.clip(1e-6)[..., None] * (1.3 - distance).clip(0)[..., None]
        scaled = scaled + 0.5 * push.sum(1)
    spread: Floats = (scaled * gap).astype(np.float32)
    return spread
