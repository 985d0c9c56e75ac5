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
from skelpipe.methods import build_method
from skelpipe.methods.slim import chance_loss
from skelpipe.protocols.evaluate import load_protocol, load_student
from skelpipe.protocols.features import extract, token_features
from skelpipe.random import fold
from skelpipe.report.plots import (
    confusion_figure,
    data_uri,
    feature_map_figure,
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

_SHORT = {"knn": "k-NN", "linear": "linear"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --faint: #5b6570; --line: #d9dee3;
  --paper: #fff; --band: #f4f6f8; --accent: #00639c; --warn: #8a4b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --faint: #a2acb5; --line: #3a424a;
  --paper: #15191d; --band: #1f252b; --accent: #7cc0ee; --warn: #ffb86b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .6rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
p, ul { margin: .5rem 0; } ul { padding-left: 1.2rem; }
.about { border-left: 4px solid var(--accent); padding: .2rem 1rem; background: var(--band); }
.warning { color: var(--warn); }
.faint, figcaption { color: var(--faint); font-size: .9rem; }
.gains { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem;
  list-style: none; padding: 0; }
.gains li { background: var(--band); border-radius: 8px; padding: .7rem 1rem; }
.gains b { display: block; font-size: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .4rem .7rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
.numbers th:nth-child(n+3), .numbers td:nth-child(n+3) { text-align: right;
  font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; background: var(--band); padding: .7rem; font-size: .8rem; }
.facts th { font-weight: 600; white-space: nowrap; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; min-width: 40rem; background: #fff; border-radius: 8px; }
"""


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
        f"<h1>{escape(title)}</h1>",
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
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n",
        encoding="utf-8",
    )
    part.replace(out)


def _about(paragraphs: Sequence[str]) -> str:
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
    return f'<div class="about">{text}</div>' if text else ""


def _warnings(warnings: Iterable[str]) -> str:
    return "".join(f'<p class="warning">Warning: {escape(text)}</p>' for text in warnings)


def _results(run: Run, records: Sequence[Record]) -> list[str]:
    if not records:
        return [
            "<h2>Results</h2>",
            "<p>This run has not been evaluated.</p>",
            _warnings(run.data["warnings"]),
        ]
    groups = comparable(records)
    cards = [
        f"<li>{escape(_SHORT[group[0]['protocol']['name']])}, {escape(gain.network)}, "
        f"{escape(gain.features)}, over {escape(gain.floor)}<b>{gain.points:+.1f} points</b>"
        f"{gain.accuracy:.1f} % against {gain.floor_accuracy:.1f} %</li>"
        for group in groups
        for gain in gains(group)
    ]
    parts = ["<h2>Results</h2>"]
    if cards:
        parts += [f'<ul class="gains">{"".join(cards)}</ul>', f"<p>{_FLOORS}</p>"]
    return parts + [_table(table) for table in result_tables(records)]


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f"<h3>{escape(table.title)}</h3>{_warnings(table.warnings)}"
        f'<p class="faint">{escape(table.subtitle)}. Protocol: {escape(table.numbers)}.</p>'
        f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _pictures(
    run: Run,
    records: Sequence[Record],
    metrics: Sequence[dict[str, float]],
    data: Path | None,
    device: torch.device,
) -> list[str]:
    parts = []
    if metrics:
        parts += [
            "<h2>Pre-training</h2>",
            _figure(
                loss_figure(metrics, chance_loss(run.recipe)),
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
            _figure(
                _views(run, data),
                "views of two samples with their masks",
                "Views of two training samples in the first epoch as the method draws them: "
                "sampled, augmented, masked. Each stick figure is one temporal token of "
                f"{run.recipe.encoder.patch_frames} frames (its middle frame, seen from the "
                "front). The student is shown the coloured joints; what it predicts of the hollow "
                "ones is compared with the teacher's answer, who sees the global views whole.",
            ),
        ]
        if complete_checkpoints(run.folder):
            parts += [
                "<h2>The features</h2>",
                _figure(
                    _features(run, data, device),
                    "map of the test features",
                    "Test samples as the student sees them (mean of patch tokens, scaled to unit "
                    "length) on their first two principal components. This is a linear projection "
                    "of all dimensions to two: classes that overlap here may well be apart in the "
                    "others. A number stands at the median of its class.",
                ),
            ]
    for record in records:
        if record["subject"] == "run":
            network = record["results"][0]["network"]
            parts += [
                f"<h2>Confusions, {escape(features_name(record))}: "
                f"{escape(record['protocol']['title'])}</h2>",
                _figure(
                    confusion_figure(record["confusion"], record["classes"]),
                    "confusion matrix",
                    f"The {network}'s answers, {record['part']}: shades are shares of a true "
                    "class, numbers are samples.",
                ),
            ]
    return parts


def _figure(figure: Figure, what: str, caption: str) -> str:
    return (
        f'<figure><div class="scroll"><img alt="{escape(what)}" src="{data_uri(figure)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


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
    bodies, globals_, locals_ = method.views(batch)
    names = [card.classes[label] for label in table["label"].to_pylist()]
    return views_figure(names, bodies.sample_B.tolist(), [globals_, *locals_], card.topology)


def _features(run: Run, data: Path, device: torch.device) -> Figure:
    card = read_card(data)
    source = open_source(data, select(data, "test"), device, run.recipe.train.source)
    encoder = load_student(run, card, device).student.encoder
    (features_ND,) = extract(
        source,
        [token_features(encoder, "patch")],
        run.recipe.views.frames,
        centre=load_protocol("knn").centre,
        absent_body=run.recipe.views.absent_body,
    )
    labels_N = np.asarray(source.table["label"].to_numpy(), dtype=np.int64)
    return feature_map_figure(features_ND.cpu().numpy(), labels_N, card.classes)


def _facts(run: Run, metrics: Sequence[dict[str, float]]) -> str:
    recipe, data = run.recipe, run.data
    train = recipe.train
    seconds = sum(train.batch / record["samples_per_s"] for record in metrics)
    facts = {
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
        facts["machine"] = f"{state['machine']}, {state['device']}, {state['threads']} threads"
        facts["versions"] = versions
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return (
        f'<table class="facts">{rows}</table>'
        f"<details><summary>The recipe in full</summary><pre>"
        f"{escape(recipe.model_dump_json(indent=1))}</pre></details>"
    )


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
