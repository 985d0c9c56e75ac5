"""`skelpipe bench`: how fast the way of the data is on this machine, beside the plain way."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from .console import console
from .options import choose_device

if TYPE_CHECKING:
    import torch

    from skelpipe.bench.measure import Row


class What(StrEnum):
    """What is measured."""

    prepare = "prepare"
    stream = "stream"
    views = "views"
    prototypes = "prototypes"
    gru = "gru"
    linear = "linear"
    knn = "knn"
    step = "step"
    damage = "damage"
    flops = "flops"
    all_ = "all"


_TITLES = {
    What.prepare: "prepare: raw text to finished shards (MB of text)",
    What.stream: "stream: shards to samples, 1 process (MB of coordinates)",
    What.views: "views: the 14 of a sample under recipe slim",
    What.prototypes: "prototypes: Sinkhorn-Knopp, cross-entropy and gradients over 65,536",
    What.gru: "gru: PCM³'s encoder forward and back, 64 frames",
    What.linear: "linear: the probe on cached features of 2048, 120 classes",
    What.knn: "knn: retrieval on features of 2048, with scores of 120 classes",
}
_ALL = (What.prepare, What.stream, What.views)


def bench(
    what: Annotated[What, typer.Argument(help="The stage to measure.")] = What.all_,
    recordings: Annotated[
        int, typer.Option(min=4, max=5000, help="Generated recordings to measure with.")
    ] = 240,
    threads: Annotated[int, typer.Option(min=1, help="Of stream and views.")] = 1,
    recipe: Annotated[
        str | None,
        typer.Option(help="Of step. [default: slim on a GPU, slim-tiny on a CPU]"),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of step's recipe.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Of prototypes, gru, linear, knn and step: auto, cpu, cuda.")
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of prototypes, gru and step. [default: bf16 on a GPU, float32 on a CPU]"
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="Of prototypes and knn's gallery, training samples of linear, and clips of gru. "
            "[default: 8192; of linear 6300, 63000 on a GPU; of gru 128 on a GPU, 16 on a CPU]",
        ),
    ] = None,
) -> None:
    """Measure a stage against the plain way of doing it, on generated recordings.

    Both run in the same rounds, in turns; rates and ratios are medians of three. Rates are this
    machine's; compare ratios. Of prepare, private memory is told as well, for few files and for
    many. `damage` makes 2,000 faults in a small set and counts who finds them: `skelpipe verify`,
    our loader, plain webdataset. `flops` measures nothing: it counts the operations of SLiM and of
    the masked autoencoders of its Table 1. `prototypes` measures the losses over 65,536 prototypes
    (minutes and 12 GB of memory on a CPU), `gru` PCM³'s encoder against the released code's form of
    it, `linear` the probe against autograd (`--rows 63000` is the size of NTU RGB+D 120), `knn`
    retrieval against the whole matrix of similarities (`--rows 63026` takes 13 GB for that), `step`
    a whole training step, beside a roofline. `all` is prepare, stream and views.
    Everything is written to a temporary folder and removed.

    Examples:

        skelpipe bench views

        skelpipe bench prepare --recordings 1000      (steadier on a busy machine)

        skelpipe bench step --recipe slim --set train.micro_batch=96 --set train.compile=true
    """
    from skelpipe.bench.measure import machine

    def measure(stage: What) -> list[Row]:
        with console.status(f"measuring {stage}"):
            if stage is What.prepare:
                from skelpipe.bench.prepare import prepare

                return prepare(recordings)
            if stage is What.stream:
                from skelpipe.bench.stream import stream

                return stream(recordings, threads=threads)
            from skelpipe.bench.views import views

            return views(recordings, threads=threads)

    if what is What.damage:
        from skelpipe.bench.damage import damage, markdown

        with console.status("damaging"):
            table = markdown(damage())
        console.print(table, markup=False, soft_wrap=True)
        return
    if what is What.flops:
        _show_flops()
        return
    if what is What.step:
        _show_step(recipe, change or [], choose_device(device), precision)
        return
    if what in (What.prototypes, What.gru, What.linear, What.knn):
        _show_kernel(what, rows, choose_device(device), precision)
        return
    console.print(machine(), soft_wrap=True)
    for stage in _ALL if what is What.all_ else (what,):
        console.print(_table(stage, measure(stage)))


def _table(stage: What, rows: list[Row]) -> Table:
    table = Table(title=_TITLES[stage], title_justify="left")
    table.add_column("what")
    for column in ("measured", "MB/s", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        value = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:.3g}"
        megabytes = "" if row.megabytes is None else f"{row.megabytes:,.0f}"
        ratio = (
            ""
            if row.ratio is None
            else f"{row.ratio:.1f}"
            if row.ratio >= 0.1
            else f"{row.ratio:.3f}"
        )
        table.add_row(row.what, f"{value} {row.unit}", megabytes, ratio)
    return table


def _show_kernel(
    what: What, count: int | None, device: torch.device, precision: str | None
) -> None:
    from skelpipe.bench.gru import gru
    from skelpipe.bench.knn import knn
    from skelpipe.bench.linear import linear
    from skelpipe.bench.measure import machine
    from skelpipe.bench.prototypes import prototypes

    on_gpu = device.type == "cuda"
    bf16 = (precision or ("bf16" if on_gpu else "float32")) == "bf16"
    console.print(machine(device), soft_wrap=True)
    with console.status(f"measuring {what}"):
        if what is What.gru:
            measured = gru(count or (128 if on_gpu else 16), device=device, bf16=bf16)
        elif what is What.linear:
            measured = linear(count or (63000 if on_gpu else 6300), device=device)
        elif what is What.knn:
            measured = knn(count or 8192, device=device)
        else:
            measured = prototypes(count or 8192, device=device, bf16=bf16)
    console.print(_table(what, measured))


def _show_step(
    name: str | None, changes: list[str], device: torch.device, precision: str | None
) -> None:
    """Time and memory of a step, and the least time that this device allows."""
    from skelpipe.bench.measure import machine
    from skelpipe.bench.step import step
    from skelpipe.config import load_recipe

    on_gpu = device.type == "cuda"
    name = name or ("slim" if on_gpu else "slim-tiny")
    precision = precision or ("bf16" if on_gpu else "float32")
    recipe = load_recipe(name, [f"train.precision={precision}", *changes])
    console.print(machine(device), soft_wrap=True)
    with console.status("measuring a step"):
        found = step(recipe, device)
    console.print(
        f"recipe {name}, batch {recipe.train.batch}, micro-batch {found.micro_batch}, {precision}; "
        f"peaks measured here: {found.peaks.flop_per_s / 1e12:.3g} TFLOP/s, "
        f"{found.peaks.bytes_per_s / 1e9:.4g} GB/s",
        soft_wrap=True,
    )
    roof = Table(title="roofline of a step", title_justify="left")
    for column in ("what", "TFLOP", "GB", "least ms"):
        roof.add_column(column, justify="left" if column == "what" else "right")
    for row in found.work:
        least = f"{1e3 * row.least_seconds(found.peaks):.1f}"
        roof.add_row(row.what, f"{row.flop / 1e12:.3f}", f"{row.bytes / 1e9:.2f}", least)
    total_bytes = sum(row.bytes for row in found.work)
    least = f"{1e3 * found.least_seconds:.1f}"
    roof.add_row("all", f"{found.flop / 1e12:.3f}", f"{total_bytes / 1e9:.2f}", least)
    console.print(roof)
    times = Table(title="measured", title_justify="left")
    for column in ("step, ms", "input", "times least", "of peak", "memory, GB", "hours"):
        times.add_column(column, justify="right")
    peak = found.nominal or found.peaks.flop_per_s
    times.add_row(
        f"{1e3 * found.seconds:.1f}",
        f"{100 * found.input_seconds / found.seconds:.1f} %",
        f"{found.seconds / found.least_seconds:.2f}",
        f"{100 * found.flop / found.seconds / peak:.1f} %",
        f"{found.memory / 1e9:.1f}",
        f"{found.hours:.2f}",
    )
    console.print(times)
    console.print(
        f"hours: {found.epochs} epochs of NTU RGB+D 60 cross-subject, {found.steps_per_epoch} "
        f"steps each. Of peak: of {'the data sheet' if found.nominal else 'the measured peak'}. "
        f"Memory: most allocated {'on the device' if on_gpu else 'by the process'}. "
        f"Input: reading a batch and drawing its views.",
        soft_wrap=True,
    )


def _show_flops() -> None:
    """Table 1's efficiency columns beside our counts, and what SLiM's training takes in all."""
    from skelpipe.bench.flops import forward, load_published, notes, other_readings, table_1
    from skelpipe.config import SLiMRecipe, load_recipe

    published, recipe = load_published(), load_recipe("slim")
    assert isinstance(recipe, SLiMRecipe)
    with console.status("counting"):
        groups = table_1(published, recipe), other_readings(recipe)
        parts, remarks = forward(recipe), notes(published, recipe)

    costs = Table(
        title=f"{published.title}, beside GFLOP as counted",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("method", "what", "tokens"):
        costs.add_column(column, no_wrap=column != "what")
    for column in ("paper", "products\n1 body", "\n2 bodies", "all\n1 body", "\n2 bodies"):
        costs.add_column(column, justify="right", no_wrap=True)
    for group in groups:
        shown = ""
        for cost in group:
            counts = [""] * 4
            if cost.flop is not None:
                one, two = cost.flop
                numbers = (one.products, two.products, one.everything, two.everything)
                counts = [f"{number / 1e9:.2f}" for number in numbers]
            quoted = "" if cost.published is None else f"{cost.published:.2f}"
            method = "" if cost.method == shown else cost.method
            costs.add_row(method, cost.what, cost.tokens, quoted, *counts)
            shown = cost.method
        costs.add_section()
    console.print(costs)

    whole = Table(
        title="SLiM's forward pass in training, a sample with one body (products)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    whole.add_column("part")
    whole.add_column("on")
    for column in ("GMAC", "GFLOP"):
        whole.add_column(column, justify="right")
    for part in parts:
        whole.add_row(part.what, part.rows, f"{part.gmac:.2f}", f"{2 * part.gmac:.2f}")
    total = sum(part.gmac for part in parts)
    whole.add_section()
    whole.add_row("in all", "", f"{total:.2f}", f"{2 * total:.2f}")
    console.print(whole)
    for remark in remarks:
        console.print(remark, markup=False, soft_wrap=True)
