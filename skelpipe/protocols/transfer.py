"""An encoder on another set than the one it was trained on: which sets serve, with which joints.

The encoder takes the joints of the skeleton that it was trained on, in their order. Another
skeleton is mapped to them by joint names, in which case, "-", "_" and spaces do not count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from skelpipe.checkpoint import Run
from skelpipe.config import Recipe
from skelpipe.errors import UserError
from skelpipe.manifest import load_topology
from skelpipe.protocols.settings import Protocol
from skelpipe.shards.card import Card, find_sets, made_from, read_card
from skelpipe.skeleton import Topology

_IDENTITY = ("dataset", "split", "data_digest")
_TOLD = (*_IDENTITY, "fps", "metric", "precision", "pipeline")
"""What a card and a run's data record tell of a set, beside its skeleton."""


def is_transfer(protocol: Protocol) -> bool:
    """Whether a protocol wants another set than that of pre-training."""
    return bool(getattr(protocol, "transfer", False))


def check_other_set(run: Run, card: Card, folder: Path) -> None:
    """Refuse the set that a run was trained on, in any split: its recordings are no other ones."""
    if not _is_other(run, card):
        raise UserError(
            "a transfer needs another set than the one the run was trained on",
            file=folder,
            found=f"{card.dataset} {card.split}, data digest {card.data_digest}",
            expected=f"another data set than {run.data['dataset']}",
            remedy="name another prepared set with --data, or take the protocol without "
            "'transfer-'",
        )


def check_named_set(
    protocol: Protocol, recipe: Recipe, run: Run | None, data: Path | None, root: Path
) -> None:
    """Refuse a transfer for which no set is named; those below a shards root that serve are said.

    Args:
        protocol: Of `load_protocol`.
        recipe: Of the run, or of a floor.
        run: Whose skeleton and data decide what serves; a floor may have none.
        data: The set that was named.
        root: Where prepared sets are looked for.
    """
    if not is_transfer(protocol) or data is not None:
        return
    serving = [folder for folder in find_sets(root) if _serves(folder, recipe, run)]
    raise UserError(
        f"'{protocol.name}' needs --data: another set than the one of pre-training",
        found=f"under {root}, these serve: {', '.join(map(str, serving))}"
        if serving
        else f"under {root}, no other set prepared with pipeline '{recipe.pipeline}' serves",
        remedy=f"--data {serving[0]}"
        if serving
        else f"skelpipe prepare pku2 --pipeline {recipe.pipeline}, or another set; then --data DIR",
    )


def trained_topology(run: Run) -> Topology | None:
    """The skeleton that a run was trained on; None where it is not known.

    Imported runs, and those of 25 joints that were started before runs recorded it, are Kinect's.
    """
    if recorded := run.data.get("topology"):
        try:
            return Topology.model_validate(recorded)
        except ValidationError as error:
            raise UserError(
                "the run's data record is damaged",
                file=run.folder / "data.json",
                place="topology",
                found=error.errors()[0]["msg"],
                remedy="put it back as it was when the run started",
            ) from error
    kinect = load_topology("kinect_v2")
    known = "imported" in run.data or run.data.get("joints") == len(kinect.joints)
    return kinect if known else None


def fit_skeleton(
    run: Run | None, card: Card, folder: Path, *, any_axes: bool = False
) -> tuple[Topology, list[int] | None]:
    """The skeleton that an encoder knows, and which joints of a set are its joints.

    Args:
        run: That brings the encoder, or whose floor is asked for; None leaves the set's skeleton.
        card: Of the set.
        folder: Of the set, for messages.
        any_axes: Let the set's axes be other ones: whole recordings are as the sensor had them,
            and an encoder that is trained further learns which way is up.

    Returns:
        The skeleton, and the place in the set of each of its joints; None for all as they are.

    Raises:
        UserError: The set lacks joints of the run's, or has several of one name; its positions have
            other axes; or the run's skeleton is not known and has another number of joints.
    """
    own = card.topology
    if run is None:
        return own, None
    known = trained_topology(run)
    if run.data.get("data_digest") == card.data_digest:  # the very positions
        return known if known and "topology" in run.data else own, None
    if known is None:
        joints = run.data.get("joints", len(own.joints))
        if joints == len(own.joints):
            return own, None
        raise UserError(
            "the set has another skeleton than the run was trained on, which did not record its "
            "joints' names",
            file=folder,
            found=f"{len(own.joints)} joints ({own.name})",
            expected=f"{joints} joints",
            remedy="evaluate on a set of the run's own skeleton, or train a new run",
        )
    if any_axes or "topology" not in run.data:
        known = known.model_copy(update={"up": own.up})
    if known.up != own.up:
        raise UserError(
            "the set's positions have other axes than the run was trained on",
            file=folder,
            found=f"{own.up} up",
            expected=f"{known.up} up",
            remedy=f"skelpipe prepare {made_from(card)} --split {card.split} --pipeline "
            f"{card.pipeline.name} --force",
        )
    if own.joints == known.joints:
        return known, None
    joints_of = map_joints(known, own, folder)
    return known, None if joints_of == list(range(len(own.joints))) else joints_of


def map_joints(known: Topology, own: Topology, folder: Path) -> list[int]:
    """The place in a set's skeleton of each joint of the run's, by name.

    A joint of exactly the same name goes before those that differ in what does not count.

    Raises:
        UserError: A joint is missing or has several of its name; all of them are named.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(own.joints):
        places.setdefault(_plain(name), []).append(place)
    found: list[int] = []
    missing: list[str] = []
    doubtful: list[str] = []
    for name in known.joints:
        same = places.get(_plain(name), [])
        exact = [place for place in same if own.joints[place] == name]
        same = exact or same
        if not same:
            missing.append(name)
        elif len(same) > 1 or same[0] in found:
            doubtful.append(name)
        else:
            found.append(same[0])
    if missing or doubtful:
        raise UserError(
            "the set's skeleton cannot be mapped to the one that the run was trained on",
            file=folder,
            found="; ".join(
                f"{what} {', '.join(names)}"
                for what, names in (
                    (f"'{own.name}' has no joint", missing),
                    (f"'{own.name}' has no single joint", doubtful),
                )
                if names
            ),
            expected=f"a joint for each of {', '.join(known.joints)}",
            remedy=f"a set that has all joints of '{known.name}', in any order and beside others; "
            "joints of other names are renamed in the set's manifest; or a run that is trained on "
            "joints that both have",
        )
    return found


def transfer_record(protocol: Protocol, run: Run, card: Card, folder: Path) -> dict[str, Any]:
    """What a record says where its set is not the run's; nothing where it is.

    Of an imported run nobody knows: something is said of it in a transfer alone, and where joints
    are mapped.

    Args:
        protocol: Of `load_protocol`.
        run: That the encoder, or the floor, is of.
        card: Of the set as it is stored.
        folder: Of the set, for messages.

    Returns:
        "transfer": "from" and "to", each a data set, split, digest and how it is stored; "joints":
        which of the set are used, by the run's names, and which are left out, or None where all are
        taken as they are; and "differences" in words.
    """
    if all(run.data.get(key) == getattr(card, key) for key in _IDENTITY):
        return {}
    known, places = fit_skeleton(run, card, folder, any_axes=protocol.task == "detection")
    if "imported" in run.data and places is None and not is_transfer(protocol):
        return {}
    names = card.topology.joints
    joints = None
    if places is not None:
        joints = {
            "used": {name: names[place] for name, place in zip(known.joints, places, strict=True)},
            "left_out": [name for place, name in enumerate(names) if place not in places],
        }
    target = card.model_dump(mode="json", include={*_TOLD})
    if "imported" in run.data:
        source: dict[str, Any] = {"imported": run.data["imported"]["file"]}
    else:
        source = {key: run.data[key] for key in _TOLD if key in run.data}
    return {
        "transfer": {
            "from": source,
            "to": target,
            "joints": joints,
            "differences": [*_differences(source, target), *_other_origin(known, card)],
        }
    }


def transfer_readings(protocol: Protocol, card: Card) -> list[str]:
    """What is our reading of a transfer to this set."""
    centre = card.pipeline.switches.get("centre")
    if not is_transfer(protocol) or centre is None or not card.dataset.startswith("pku"):
        return []
    return [
        "MAMP leaves PKU-MMD uncentred, so that its transfer from NTU RGB+D crosses a shift of "
        "coordinates: "
        + ("so does this set (centre none)" if centre == "none" else "this set is centred as NTU")
    ]


def _is_other(run: Run, card: Card) -> bool:
    """Whether a set holds other recordings than those that a run was trained on."""
    data = run.data
    return data.get("dataset") != card.dataset and data.get("data_digest") != card.data_digest


def _serves(folder: Path, recipe: Recipe, run: Run | None) -> bool:
    try:
        card = read_card(folder)
        if card.pipeline.name != recipe.pipeline or (run is not None and not _is_other(run, card)):
            return False
        fit_skeleton(run, card, folder)
    except UserError:
        return False
    return True


def _differences(source: dict[str, Any], target: dict[str, Any]) -> list[str]:
    """What an encoder may notice beside the skeleton, where the run recorded it."""
    if "pipeline" not in source:
        return []
    found = []
    if source["fps"] != target["fps"]:
        found.append(
            f"{target['fps']:g} frames a second, {source['fps']:g} in pre-training: views stretch "
            "a share of a recording, not a time"
        )
    if source["metric"] != target["metric"]:
        units = ["a unit that is not known" if not of["metric"] else "metres"
                 for of in (target, source)]  # fmt: skip
        found.append(f"positions in {units[0]}, in pre-training in {units[1]}")
    before, after = source["pipeline"], target["pipeline"]
    if before["version"] != after["version"]:
        found.append(f"pipeline version {after['version']}, {before['version']} in pre-training")
    for switch in sorted(before["switches"].keys() & after["switches"].keys()):
        was, now = before["switches"][switch], after["switches"][switch]
        if was != now:
            found.append(f"prepared with {switch} {now}, in pre-training with {was}")
    return found


def _other_origin(known: Topology, card: Card) -> list[str]:
    """Joints that the pipeline places or turns a skeleton by, where the set's are other ones."""
    own, found = card.topology, []
    marks = ("centre", "spine", "shoulders") if card.pipeline.name == "agcn" else ("centre",)
    for mark in marks:
        here, there = (_marked(topology, mark) for topology in (own, known))
        if list(map(_plain, here)) != list(map(_plain, there)):
            found.append(
                f"normalised by another {mark}: {' to '.join(here)}, in pre-training by "
                f"{' to '.join(there)}"
            )
    return found


def _marked(topology: Topology, mark: str) -> list[str]:
    places = getattr(topology, mark)
    return [topology.joints[at] for at in ([places] if isinstance(places, int) else places or [])]


def _plain(name: str) -> str:
    return name.casefold().translate(str.maketrans("", "", "-_ "))
