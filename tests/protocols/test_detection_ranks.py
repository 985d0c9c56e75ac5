from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CPU, tiny_pcm3_recipe, tiny_recipe
from recordings import recording_of, write_recordings
from safetensors.torch import load_file, save_file
from test_detection import model_of, protocol

from skelpipe import distributed
from skelpipe.protocols.detection import detect
from skelpipe.protocols.detection_training import fit
from skelpipe.protocols.question import Question
from skelpipe.shards.card import read_card
from skelpipe.stream.frame_labels import read_frame_labels
from skelpipe.stream.source import open_source, select

RECIPES = {"pcm3": tiny_pcm3_recipe(), "slim": tiny_recipe()}
CHANGES = ("epochs=3", "drops=[2]", "batch=13", "per_recording=6")  # 13 are shared by 2 or 3


def work(data: Path, out: Path) -> None:
    """Train in double precision, detect, and store weights and segments."""
    for name, recipe in RECIPES.items():
        table = {part: select(data, part) for part in ("train", "test")}  # type: ignore[arg-type]
        source = {part: open_source(data, rows, CPU, "mapped") for part, rows in table.items()}
        labels = {part: read_frame_labels(data, rows) for part, rows in table.items()}
        model = model_of(recipe, *CHANGES).double()
        slots = model.slots(2)
        fit(
            model, source["train"], [one.label_T for one in labels["train"]], protocol(*CHANGES),
            slots=slots, seed=4,
        )  # fmt: skip
        question = Question(
            "random-init", recipe, None, "patch", data, read_card(data), source["train"],
            source["test"], 0, CPU,
        )  # fmt: skip
        found, right = detect(model, protocol(*CHANGES), question, labels["test"], slots)
        state = dict(model.state_dict())
        state["found"] = torch.tensor(found, dtype=torch.float64).view(-1, 5)
        state["right"] = torch.tensor(right)
        save_file(state, out.with_name(f"{out.name}-{name}.safetensors"))


def one_rank(rank: int, world: int, port: int, data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with distributed.process_group(CPU, 60):
        work(data, out / f"{world}-{rank}")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one, two and three ranks worked; four recordings are asked."""
    folder = tmp_path_factory.mktemp("ranks")
    samples = [recording_of(number, "train") for number in range(5)]
    samples += [recording_of(number, "test") for number in range(4)]
    data = write_recordings(folder / "set", samples)
    work(data, folder / "1-0")
    # One server imports what takes long, once; each rank is a fork of it.
    server: Any = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch._dynamo", "skelpipe.protocols.evaluate"])
    for world in (2, 3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [
            server.Process(target=one_rank, args=(rank, world, port, data, folder))
            for rank in range(world)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
            assert process.exitcode == 0
    return folder


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("world", [2, 3])
def test_detection_does_not_depend_on_the_number_of_ranks(
    ranks: Path, world: int, name: str
) -> None:
    wanted = load_file(ranks / f"1-0-{name}.safetensors")
    assert len(wanted["found"]) > 0
    for rank in range(world):
        found = load_file(ranks / f"{world}-{rank}-{name}.safetensors")
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, msg=key)
