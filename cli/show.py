"""`skelpipe show`: one sample or recording in motion."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from skelpipe.errors import UserError

from .console import console

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from skelpipe.prepare.recording import Recording
    from skelpipe.report.scene import Clip, Scene

_MOST = 10**7  # numbers of a recording; minutes of a few bodies are a tenth of that


def show(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PLACE",
            help="A prepared set, a raw file (.skeleton, or .txt of PKU-MMD), or one in a zip: "
            "ARCHIVE.zip:MEMBER.",
        ),
    ],
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="Which sample, where PLACE is a prepared set."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The .gif or .html to write. Default: KEY.gif, in this folder, or KEY.html of a "
            "recording of more than 1,200 frames."
        ),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(help="Show a raw file as this pipeline leaves it: ctrgcn or agcn."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write an animation of one sample: from the front, from the side and from above.

    A sample's parts have colours, and a second body is lighter. A raw file is shown as it was
    recorded, before any cleaning, in one colour a body.

    Examples:

        skelpipe show data/shards/ntu60/ctrgcn/xsub S001C002P003R002A013

        skelpipe show data/raw/nturgbd_skeletons_s001_to_s017.zip:S001C001P001R001A050.skeleton

        skelpipe show S001C001P001R001A050.skeleton --pipeline ctrgcn --out after.html
    """
    file = Path(place)
    archive, _, member = place.rpartition(":")
    if file.is_dir():
        clip = _of_set(file, key, pipeline)
    elif key is not None:
        raise UserError(
            "a KEY names a sample of a prepared set, which this is not", file=place, found=key
        )
    elif file.is_file():
        clip = _of_raw(place, file.name, file.read_bytes, pipeline)
    elif member and Path(archive).is_file():
        clip = _of_raw(place, member, lambda: _read_member(Path(archive), member), pipeline)
    else:
        raise UserError("there is no such file or folder", file=place)

    from skelpipe.report.gif import LONGEST
    from skelpipe.report.scene import lay_out

    suffix = f"-{pipeline}" if pipeline else ""
    kind = "gif" if clip.poses_MTJC.shape[1] <= LONGEST else "html"
    target = out or Path(f"{PurePosixPath(clip.key).name}{suffix}.{kind}")
    if target.suffix.lower() not in (".gif", ".html"):
        raise UserError(
            f"cannot write '{target.suffix or target.name}'", file=target, expected=".gif or .html"
        )
    if target.exists() and not force:
        raise UserError("the file exists already", file=target, remedy="--force replaces it")
    _write(lay_out(clip), target)
    bodies, frames = clip.poses_MTJC.shape[:2]
    told = f"{_counted(frames, 'frame', 'frames')}, {_counted(bodies, 'body', 'bodies')}"
    console.print(f"{told}: {target}", soft_wrap=True, markup=False)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _of_set(folder: Path, key: str | None, pipeline: str | None) -> Clip:
    from skelpipe.report.samples import find, read_clips
    from skelpipe.shards.card import read_card
    from skelpipe.shards.index import read_index

    card = read_card(folder)
    if pipeline is not None:
        raise UserError(
            "--pipeline is for raw files",
            file=folder,
            found=f"a set that {card.pipeline.name} has prepared",
        )
    if key is None:
        keys = read_index(folder)["key"]
        raise UserError(
            "which sample is to be shown?",
            file=folder,
            found=f"{len(keys):,} of them",
            remedy=f"name one: skelpipe show {folder} {keys[0]}",
        )
    (clip,) = read_clips(folder, [find(folder, key)])
    return clip


def _of_raw(place: str, name: str, read: Callable[[], bytes], pipeline: str | None) -> Clip:
    """A raw file's bodies as they were recorded, or as a pipeline leaves them."""
    from skelpipe.manifest import load_topology
    from skelpipe.prepare import ntu, pku
    from skelpipe.prepare.normalise import find_pipeline
    from skelpipe.prepare.recording import RejectedError
    from skelpipe.report.scene import Clip

    parsers = {".skeleton": ntu.parse, ".txt": pku.parse}
    path = PurePosixPath(name)
    if path.suffix not in parsers:
        raise UserError(
            "this is no raw file that can be shown",
            file=place,
            expected=f"a name that ends in {' or '.join(parsers)}",
            remedy="a recording in a zip is named ARCHIVE.zip:MEMBER",
        )
    topology = load_topology("kinect_v2")
    names: tuple[str, ...] = ()
    try:
        recording = parsers[path.suffix](read())
        if pipeline is None:
            names, poses_MTJC = _tracks(recording, place)
        else:
            chosen = find_pipeline(pipeline)
            poses_MTJC = chosen.apply(recording, topology, chosen.settled({}))
            if pipeline == "agcn":  # which turns bodies from y up to z up
                topology = topology.model_copy(update={"up": "z"})
    except RejectedError as error:
        raise UserError(f"the recording cannot be used: {error.reason}", file=place) from error
    what = f"after {pipeline}" if pipeline else "as recorded"
    return Clip(path.stem, what, poses_MTJC, topology, fps=30, bodies=names)


def _tracks(recording: Recording, place: str) -> tuple[tuple[str, ...], npt.NDArray[np.floating]]:
    """The bodies by their ids, in the order in which they appear: names, and shape (M, T, J, 3).

    An id that stands twice in a frame makes two bodies. Without ids, bodies are places.
    """
    import numpy as np

    if recording.id_R is None:
        slots_MTJC = recording.slots()
        ever = np.flatnonzero(slots_MTJC.any(axis=(1, 2, 3)))
        return tuple(f"body {slot + 1}" for slot in ever), slots_MTJC[ever]
    seen: Counter[tuple[int, int]] = Counter()
    bodies: dict[tuple[int, int], int] = {}
    body_R = []
    for row in zip(recording.frame_R.tolist(), recording.id_R.tolist(), strict=True):
        body_R.append(bodies.setdefault((row[1], seen[row]), len(bodies)))
        seen[row] += 1
    shape = (len(bodies), recording.frames, *recording.xyz_RJC.shape[1:])
    if np.prod(shape, dtype=object) > _MOST:
        raise UserError(
            "the recording is too large to be shown",
            file=place,
            found=f"{len(bodies):,} bodies in {recording.frames:,} frames",
        )
    poses_MTJC = np.zeros(shape)
    poses_MTJC[body_R, recording.frame_R] = recording.xyz_RJC
    names = tuple(_id_name(number) + (" again" if twice else "") for number, twice in bodies)
    return names, poses_MTJC


def _id_name(number: int) -> str:
    """Ids of 17 digits begin alike: their ends tell them apart."""
    return f"id {number}" if abs(number) < 10**7 else f"id …{abs(number) % 10**7:07}"


def _read_member(archive: Path, name: str) -> bytes:
    """A member of a zip, by its name or by the end of its path."""
    from skelpipe.prepare.archive import LARGEST

    try:
        with zipfile.ZipFile(archive) as opened:
            full = min(
                (member for member in opened.namelist() if f"/{member}".endswith(f"/{name}")),
                key=len,
                default=None,
            )
            if full is None:
                raise UserError(
                    f"the zip holds no '{name}'",
                    file=archive,
                    found=f"{len(opened.namelist()):,} members, such as {opened.namelist()[:1]}",
                )
            if opened.getinfo(full).file_size > LARGEST:
                raise UserError(
                    "the member is too large", file=archive, place=full, expected=f"≤ {LARGEST}"
                )
            with opened.open(full) as member:
                return member.read(LARGEST)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError("the zip cannot be read", file=archive, found=error) from error


def _write(scene: Scene, out: Path) -> None:
    if out.suffix.lower() == ".html":
        from skelpipe.report.html import write_html
        from skelpipe.report.player import SCRIPT, STYLE, player

        write_html(out, scene.clip.key, [player(scene), SCRIPT], style=STYLE)
        return
    from skelpipe.report.gif import gif_bytes

    content = gif_bytes(scene)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_bytes(content)
    part.replace(out)
