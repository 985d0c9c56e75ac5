"""k-NN and the linear probe over 1, 2 and 3 ranks, with sizes that none of them divides."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CPU, tiny_recipe, write_set

from skelpipe import distributed
from skelpipe.protocols.evaluate import evaluate
from skelpipe.protocols.knn import retrieve
from skelpipe.protocols.settings import load_protocol

WORLDS = (3, 2)
ASKED: list[tuple[str, str, tuple[str, ...]]] = [
    ("knn", "raw", ()),
    ("knn", "random-init", ("k=3",)),
    ("linear", "raw", ("epochs=2", "batch=5", "random.shortest=4")),
    ("linear-pcm3", "random-init", ("epochs=3", "batch=8", "drops=[1, 2]")),
]


def answers(data: Path) -> dict[str, Any]:
    """What this rank finds."""
    found: dict[str, Any] = {"world": distributed.world()}
    for name, subject, changes in ASKED:
        record = evaluate(
            load_protocol(name, changes), tiny_recipe(), data, subject=subject, device=CPU  # type: ignore[arg-type]
        ).record  # fmt: skip
        kept = ("results", "confusion", "per_class", "headline", "samples")
        found[f"{name} {subject}"] = {key: record[key] for key in kept}
    few = torch.randn(9, 33, generator=torch.Generator().manual_seed(0))
    copies = few[torch.arange(83) * 5 % 9]  # so that all are near nine times
    for count in (1, 2, 77):  # of one query some ranks have none
        query = torch.randn(count, 33, generator=torch.Generator().manual_seed(1))
        for k in (1, 20):
            place, score = retrieve(query, copies, torch.arange(83) % 4, 4, k, tile=(64, 64))
            found[f"{count} queries, k {k}"] = [place.tolist(), score.tolist()]
    return found


def main(rank: int, ports: list[str], data: Path, folder: Path) -> None:
    """One process is a rank of the world of three, then of that of two."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost"}
    for world, port in zip(WORLDS, ports, strict=True):
        if rank < world:
            os.environ |= {"WORLD_SIZE": str(world), "MASTER_PORT": port}
            with distributed.process_group(CPU, 60):
                text = json.dumps(answers(data))
            (folder / f"{world}-{rank}.json").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "toy", train=23, test=17)


@pytest.fixture(scope="module")
def told(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    ports = []
    with socket.socket() as one, socket.socket() as other:
        for listener in (one, other):
            listener.bind(("localhost", 0))
            ports.append(str(listener.getsockname()[1]))
    # One process imports everything, those of the ranks are forked from it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["skelpipe.protocols.evaluate"])
    arguments = [(rank, ports, data, folder) for rank in range(3)]
    ranks = [context.Process(target=main, args=words) for words in arguments]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    return folder


def test_results_do_not_depend_on_the_number_of_ranks(told: Path, data: Path) -> None:
    wanted = json.loads(json.dumps(answers(data)))
    assert wanted.pop("world") == 1
    for world in WORLDS:
        for rank in range(world):
            found = json.loads((told / f"{world}-{rank}.json").read_text(encoding="utf-8"))
            assert found.pop("world") == world
            for name, value in wanted.items():
                assert found[name] == value, (name, world, rank)
