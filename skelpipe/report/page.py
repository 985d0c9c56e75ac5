"""A run as one self-contained HTML page: nothing is loaded, nothing is executed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from matplotlib.figure import Figure

from skelpipe.checkpoint import Run, complete_checkpoints, read_json
from skelpipe.config import SLiMRecipe
from skelpipe.methods import build_method
from skelpipe.methods.slim import SLiM, chance_loss
from skelpipe.protocols.features import default_kind, encode_by, extract, viewer
from skelpipe.protocols.question import load_encoder
from skelpipe.protocols.settings import Knn, load_protocol
from skelpipe.random import fold
from skelpipe.report.html import facts, picture, table, warnings, write_html
from skelpipe.report.plots import (
    confusion_figure,
    feature_map_figure,
    horizon_figure,
    loss_figure,
    views_figure,
)
from skelpipe.report.tables import (
    Record,
    Table,
    comparable,
    features_name,
    gains,
    read_results,
    result_tables,
)
from skelpipe.shards.card import read_card
from skelpipe.stream.source import open_source, select
from skelpipe.train import read_metrics

_FLOORS = (
    "Floors tell a gain from what comes for free. The <em>raw skeleton</em> is the plain "
    "resampled recording, compared coordinate by coordinate: no network at all. The "
    "<em>untrained encoder</em> is the same network with its initial weights: no learning."
)

_SHORT = {
    "knn": "k-NN",
    "linear": "linear",
    "linear-cmd": "linear as CMD's",
    "linear-pcm3": "linear as PCM3's",
    "transfer-linear": "linear on another set",
    "occlusion-spatial": "linear, parts hidden",
    "occlusion-temporal": "linear, frames hidden",
    "motion": "motion prediction",
    "finetune": "fine-tuned",
    "finetune-cmd": "fine-tuned as CMD's",
    "semi": "semi-supervised",
    "semi-cmd": "semi-supervised as CMD's",
    "transfer-finetune": "transfer, fine-tuned",
    "transfer-cmd": "transfer, fine-tuned as CMD's",
    "detection": "detection",
}


def write_page(
    run: Run,
    out: Path,
    *,
    title: str,
    about: Sequence[str] = (),
    data: Path | None = None,
    device: torch.device | None = None,
) -> None:
    """Write a run's page from the files in its folder.

    Args:
        run: Whose recipe, metrics and results are shown.
        out: The HTML file.
        title: Heading.
        about: Paragraphs that say what this is, in plain text.
        data: The run's prepared set: pictures of views and features are drawn from it; without it
            they are left out.
        device: Where features are computed; the CPU if not given.
    """
    records = read_results(run.folder)
    # A folder that holds no more than a recipe still makes a page.
    metrics = read_metrics(run.folder) if (run.folder / "metrics.jsonl").is_file() else []
    parts = [
        _about(about),
        *_results(run, records),
        *_pictures(run, records, metrics, data, device or torch.device("cpu")),
        "<h2>The run</h2>",
        _facts(run, metrics),
        "<h2>Our reading</h2>",
        '<p class="faint">Where the paper leaves a choice open or contradicts itself, this run '
        "read it so:</p>",
        _list(run.data["readings"]),
    ]
    write_html(out, title, parts)


def _about(paragraphs: Sequence[str]) -> str:
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
    return f'<div class="about">{text}</div>' if text else ""


def _results(run: Run, records: Sequence[Record]) -> list[str]:
    if not records:
        return [
            "<h2>Results</h2>",
            "<p>This run has not been evaluated.</p>",
            warnings(run.data["warnings"]),
        ]
    groups = comparable(records)
    cards = [
        f"<li>{escape(_short(group[0]['protocol']['name']))}, {escape(gain.network)}, "
        f"{escape(gain.features)}, over {escape(gain.floor)}<b>{gain.points:+.1f} points</b>"
        f"{gain.accuracy:.1f} % against {gain.floor_accuracy:.1f} %</li>"
        for group in groups
        for gain in gains(group)
    ]
    parts = ["<h2>Results</h2>"]
    if cards:
        parts += [f'<ul class="gains">{"".join(cards)}</ul>', f"<p>{_FLOORS}</p>"]
    return parts + [_table(results) for results in result_tables(records)]


def _short(protocol: str) -> str:
    return _SHORT.get(protocol, protocol)


def _table(results: Table) -> str:
    return (
        f"<h3>{escape(results.title)}</h3>{warnings(results.warnings)}"
        f'<p class="faint">{escape(results.subtitle)}. Protocol: {escape(results.numbers)}.</p>'
        f"{table(results.columns, results.rows)}"
    )


def _pictures(
    run: Run,
    records: Sequence[Record],
    metrics: Sequence[dict[str, float]],
    data: Path | None,
    device: torch.device,
) -> list[str]:
    recipe = run.recipe
    assert isinstance(recipe, SLiMRecipe)  # the demo runs no other
    parts = []
    if metrics:
        parts += [
            "<h2>Pre-training</h2>",
            picture(
                loss_figure(metrics, chance_loss(recipe)),
                "loss curves",
                "Means over short stretches of steps. A student that tells nothing apart has a "
                "contrast loss of ln K. Collapse would show twice: the mean class target loses its "
                "entropy where few prototypes are used, and a single target keeps all of it where "
                "the teacher has nothing to say.",
            ),
        ]
    if data is not None:
        parts += [
            "<h2>What the network is shown</h2>",
            picture(
                _views(run, data),
                "views of two samples with their masks",
                "Views of two training samples in the first epoch as the method draws them: "
                "sampled, augmented, masked. Each stick figure is one temporal token of "
                f"{recipe.encoder.patch_frames} frames (its middle frame, seen from the "
                "front). The student is shown the coloured joints; what it predicts of the hollow "
                "ones is compared with the teacher's answer, who sees the global views whole.",
            ),
        ]
        if complete_checkpoints(run.folder):
            parts += [
                "<h2>The features</h2>",
                picture(
                    _features(run, data, device),
                    "map of the test features",
                    "Test samples as the student sees them (mean of patch tokens, scaled to unit "
                    "length) on their first two principal components. This is a linear projection "
                    "of all dimensions to two: classes that overlap here may well be apart in the "
                    "others. A number stands at the median of its class.",
                ),
            ]
    for record in records:
        if record["subject"] == "run" and "confusion" in record:
            network = record["results"][0]["network"]
            parts += [
                f"<h2>Confusions, {escape(features_name(record))}: "
                f"{escape(record['protocol']['title'])}</h2>",
                picture(
                    confusion_figure(record["confusion"], record["classes"]),
                    "confusion matrix",
                    f"The {network}'s answers, {record['part']}: shades are shares of a true "
                    "class, numbers are samples.",
                ),
            ]
    for group in comparable(records):
        if "baselines" in group[0]:
            rows = [*(row for record in group for row in record["results"]), *group[0]["baselines"]]
            parts += [
                f"<h2>By how far ahead: {escape(group[0]['protocol']['title'])}</h2>",
                picture(
                    horizon_figure({row["network"]: row["by_horizon"] for row in rows}),
                    "error by horizon",
                    "Means over joints and test samples, of the frames after those observed.",
                ),
            ]
    return parts


def _views(run: Run, data: Path, count: int = 2) -> Figure:
    """Views of the first samples of one body, each of another class."""
    card = read_card(data)
    table = select(data, "train", without=run.data["val_subjects"])
    table = table.filter(pc.equal(table["bodies"], 1))
    _, places = np.unique(table["label"].to_numpy(), return_index=True)
    table = table.take(np.sort(places)[:count])
    source = open_source(data, table, torch.device("cpu"), "mapped")
    row_N = torch.as_tensor(table["row"].to_numpy().copy())
    batch = source.take(torch.arange(len(table)), fold(int(run.data["seed"]), 0, row_N))
    method = build_method(run.recipe, card.topology, int(run.data["seed"]))
    assert isinstance(method, SLiM)
    bodies, globals_, locals_ = method.views(batch)
    names = [card.classes[label] for label in table["label"].to_pylist()]
    return views_figure(names, bodies.sample_B.tolist(), [globals_, *locals_], card.topology)


def _features(run: Run, data: Path, device: torch.device) -> Figure:
    card = read_card(data)
    source = open_source(data, select(data, "test"), device, run.recipe.train.source)
    recipe, protocol = run.recipe, load_protocol("knn")
    assert isinstance(protocol, Knn)
    student = encode_by(load_encoder(run, card.topology).to(device).eval(), default_kind(recipe))
    see = viewer(recipe, card.topology, protocol.centre)
    (features_ND,) = extract(source, [student], see)
    labels_N = np.asarray(source.table["label"].to_numpy(), dtype=np.int64)
    return feature_map_figure(features_ND.cpu().numpy(), labels_N, card.classes)


def _facts(run: Run, metrics: Sequence[dict[str, float]]) -> str:
    recipe, data = run.recipe, run.data
    train = recipe.train
    seconds = sum(train.batch / record["samples_per_s"] for record in metrics)
    rows = {
        "recipe": ": ".join(filter(None, (recipe.name, recipe.title))),
        "training": f"{train.epochs} epochs, batch {train.batch}, {train.precision}, "
        f"{len(metrics):,} steps in {seconds / 60:.1f} minutes",
        "seed": data["seed"],
        "data": f"{data['dataset']} {data['split']}, data digest {data['data_digest']}",
        "held out": f"subjects {data['val_subjects']}" if data["val_subjects"] else "no subjects",
        "started": data["started"],
    }
    for checkpoint in complete_checkpoints(run.folder)[-1:]:
        state = read_json(checkpoint / "state.json")
        versions = ", ".join(f"{name} {number}" for name, number in state["versions"].items())
        rows["machine"] = f"{state['machine']}, {state['device']}, {state['threads']} threads"
        rows["versions"] = versions
    return (
        f"{facts(rows)}<details><summary>The recipe in full</summary><pre>"
        f"{escape(recipe.model_dump_json(indent=1))}</pre></details>"
    )


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
