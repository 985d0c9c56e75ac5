from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from pathlib import Path

import fsspec
import pytest
import torch
import webdataset
from builders import CPU, write_set
from served import Served as Server
from served import serving
from skelpipe.cli.main import app
from typer.testing import CliRunner

from skelpipe.errors import UserError
from skelpipe.shards.card import read_card
from skelpipe.shards.index import read_index
from skelpipe.stream import remote
from skelpipe.stream.loader import Loader
from skelpipe.stream.remote import Served, cache_size, fetch_set, is_url
from skelpipe.stream.source import Batch, Mapped, Resident, open_source, select

TRAIN = [f"train-{number:06d}.tar" for number in range(3)]
TEST = [f"test-{number:06d}.tar" for number in range(2)]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_WAIT", 0.001)
    monkeypatch.delenv("SKELPIPE_CACHE_SIZE", raising=False)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return write_set(tmp_path / "origin")


@pytest.fixture
def server(origin: Path) -> Iterator[Server]:
    with serving(origin) as found:
        yield found


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "cache"
    assert not list((tmp_path / "cache").rglob("*.part"))


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def span(folder: Path, key: str) -> tuple[str, int]:
    """Shard of a sample, and a byte in the middle of its coordinates."""
    row = next(row for row in read_index(folder).to_pylist() if row["key"] == key)
    return row["shard"], row["offset"] + row["size"] // 2


def same(left: Batch, right: Batch) -> None:
    for field in fields(Batch):
        if field.name not in ("flat_RJC", "present_R", "start_N"):
            assert torch.equal(getattr(left, field.name), getattr(right, field.name))
    for number in range(len(left)):
        rows = int(left.frames_N[number] * left.bodies_N[number])
        first, second = int(left.start_N[number]), int(right.start_N[number])
        for name in ("flat_RJC", "present_R"):
            ours, theirs = getattr(left, name), getattr(right, name)
            assert torch.equal(ours[first : first + rows], theirs[second : second + rows])


def test_a_set_is_card_and_index_until_samples_are_read(
    server: Server, origin: Path, cache: Path
) -> None:
    folder = fetch_set(server.url + "/", cache)
    assert sorted(os.listdir(folder)) == ["card.json", "index.parquet", "remote.json"]
    assert read_card(folder) == read_card(origin)
    assert read_index(folder).equals(read_index(origin))
    assert server.whole == {"card.json": 1, "index.parquet": 1}
    assert fetch_set(server.url, cache) == folder
    assert server.whole == {"card.json": 2, "index.parquet": 1}
    source = open_source(folder, select(folder, "train"), CPU, "mapped")
    assert set(server.whole) == {"card.json", "index.parquet"}
    next(Loader(source, 12, 0))
    assert {name: server.whole[name] for name in TRAIN} == dict.fromkeys(TRAIN, 1)
    assert not any(name.startswith("test") for name in server.whole)


@pytest.mark.parametrize("room", [0, 40_000, 10**9])
def test_every_source_gives_the_same_batches(
    server: Server, origin: Path, cache: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKELPIPE_CACHE_SIZE", str(room))
    near, far = select(origin, "train"), select(fetch_set(server.url, cache), "train")
    wanted = Loader(open_source(origin, near, CPU, "resident"), 4, 5, tail="carry")
    batches = [next(wanted) for _ in range(9)]
    for folder, kind, workers in product((origin, fetch_set(server.url, cache)), (0, 1), (0, 2)):
        table = near if folder == origin else far
        source = open_source(folder, table, CPU, "mapped" if kind else "resident")
        loader = Loader(source, 4, 5, tail="carry", workers=workers)
        assert loader.order_digest() == wanted.order_digest()
        for batch in batches:
            same(batch, next(loader))
        loader.close()
    sizes = {name: read_card(origin).files[name].size for name in TRAIN}
    kept = {file.name: file.stat().st_size for file in cache.glob("*/*.tar")}
    assert sum(kept.values()) <= room
    assert kept == (sizes if room == 10**9 else kept)
    assert room != 40_000 or 0 < len(kept) < 3
    asked = {name: server.whole[name] for name in TRAIN}
    assert asked == {name: int(name in kept) for name in TRAIN}  # once in all
    assert {name for name in TRAIN if server.parts[name]} == set(TRAIN) - set(kept)


def test_a_server_without_ranges_is_named_with_the_remedy(origin: Path, cache: Path) -> None:
    with serving(origin, ranges=False) as server:
        folder = fetch_set(server.url, cache)
        table = select(folder, "train")
        shards = Served(folder, read_card(folder), table, server.url, size=0)
        with pytest.raises(UserError, match="does not serve parts") as error:
            shards.spans([(TRAIN[0], 512, 900), (TRAIN[1], 512, 900), (TRAIN[2], 512, 900)])
        assert "SKELPIPE_CACHE_SIZE=1GB" in str(error.value)
        assert sum(server.parts.values()) == 1  # and not a whole shard for each sample
        assert len(Mapped(folder, table, CPU).take(torch.arange(12))) == 12  # which fits


def test_a_busy_server_is_asked_again(server: Server, cache: Path) -> None:
    server.busy.update({"card.json": 3, "index.parquet": 1, TRAIN[0]: 2})
    server.cut.update({TRAIN[1]: 1})
    folder = fetch_set(server.url, cache)
    table = select(folder, "train")
    same(
        Resident(folder, table, CPU).take(torch.arange(12)),
        Mapped(folder, table, CPU).take(torch.arange(12)),
    )
    assert [server.whole[name] for name in TRAIN] == [3, 2, 1]
    apart = Served(folder, read_card(folder), table, server.url, size=0)
    server.busy.update({TRAIN[0]: 1})
    asked = [(TRAIN[0], 10 * n, 10 * n + 10) for n in range(5)]
    data = (folder / TRAIN[0]).read_bytes() if (folder / TRAIN[0]).exists() else None
    assert data is None  # no room, so it was removed
    assert [len(part) for part in apart.spans(asked)] == [10] * 5


def test_a_server_that_fails_is_given_up(server: Server, cache: Path) -> None:
    server.busy["card.json"] = 100
    with pytest.raises(UserError, match=r"in 4 attempts[^$]*card\.json[^$]*503"):
        fetch_set(server.url, cache)
    assert server.whole["card.json"] == 4
    with pytest.raises(UserError, match=r"no such file[^$]*elsewhere/card\.json"):
        fetch_set(server.url + "/elsewhere", cache)
    assert server.whole["elsewhere/card.json"] == 1
    gone = server.url
    server.server_close()
    server.shutdown()
    with pytest.raises(UserError, match="in 4 attempts"):
        fetch_set(gone, cache)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_damaged_shard_in_the_cache_is_fetched_again(
    server: Server, origin: Path, cache: Path
) -> None:
    folder = fetch_set(server.url, cache)
    table = select(folder, "train")
    wanted = Mapped(folder, table, CPU).take(torch.arange(12))
    shard, place = span(folder, "train003")
    flip(folder / shard, place)
    cut = next(name for name in TRAIN if name != shard)
    with (folder / cut).open("r+b") as file:
        file.truncate(700)
    source = Mapped(folder, table, CPU)
    same(source.take(torch.arange(12)), wanted)
    assert server.whole[shard] == server.whole[cut] == 2
    assert (folder / shard).read_bytes() == (origin / shard).read_bytes()
    same(source.take(torch.arange(12)), wanted)
    assert server.whole[shard] == 2


def test_a_shard_that_is_served_damaged_is_an_error(
    server: Server, origin: Path, cache: Path
) -> None:
    folder = fetch_set(server.url, cache)
    table = select(folder, "train")
    shard, place = span(folder, "train003")
    flip(origin / shard, place)
    with pytest.raises(UserError, match=f"not the card's[^$]*{shard}"):
        Mapped(folder, table, CPU).take(torch.arange(12))
    assert server.whole[shard] == 2
    assert not (folder / shard).exists()


def test_a_part_that_is_served_damaged_names_the_sample(
    server: Server, origin: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKELPIPE_CACHE_SIZE", "1kB")
    folder = fetch_set(server.url, cache)
    source = Mapped(folder, select(folder, "train"), CPU)
    shard, place = span(folder, "train003")
    flip(origin / shard, place)
    with pytest.raises(UserError, match=f"train003 is damaged[^$]*{shard}[^$]*{server.url}"):
        source.take(torch.arange(12))
    assert len(source.take(torch.arange(3, 9))) == 6


def test_another_set_at_the_url_is_another_folder(
    server: Server, origin: Path, cache: Path, tmp_path: Path
) -> None:
    first = fetch_set(server.url, cache)
    shutil.rmtree(origin)
    write_set(origin, seed=1)
    second = fetch_set(server.url, cache)
    assert first != second
    assert read_card(second) == read_card(origin)
    stale = Mapped(first, select(first, "train"), CPU)
    with pytest.raises(UserError, match="not the card's"):
        stale.take(torch.arange(12))


def test_what_is_no_set_is_refused(server: Server, origin: Path, cache: Path) -> None:
    flip(origin / "index.parquet", 100)
    with pytest.raises(UserError, match=r"not the card's[^$]*index\.parquet"):
        fetch_set(server.url, cache)
    flip(origin / "card.json", 100)
    with pytest.raises(UserError, match=r"the card is[^$]*card\.json"):
        fetch_set(server.url, cache)
    assert not cache.exists()


def test_room_is_made_at_the_cost_of_what_was_not_used(
    server: Server, tmp_path: Path, cache: Path
) -> None:
    folder = fetch_set(server.url, cache)
    card = read_card(folder)
    train, test = select(folder, "train"), select(folder, "test")
    sizes = [card.files[name].size for name in TRAIN]
    Served(folder, card, train, server.url).open(TRAIN)
    for age, name in ((30, TRAIN[1]), (20, TRAIN[0]), (10, TRAIN[2])):
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    other = Served(folder, card, test, server.url, size=sum(sizes))
    assert not (folder / TRAIN[1]).exists()
    other.open(["test-000000.tar"])
    assert (folder / TRAIN[2]).exists()
    assert sum(file.stat().st_size for file in folder.glob("*.tar")) <= sum(sizes)


def test_sources_side_by_side_stay_within_the_cache(
    server: Server, origin: Path, cache: Path
) -> None:
    folder = fetch_set(server.url, cache)
    card = read_card(folder)
    room = sum(card.files[name].size for name in TRAIN)
    train, test = (
        Served(folder, card, select(folder, part), server.url, size=room)
        for part in ("train", "test")  # type: ignore[arg-type]
    )
    opened = [*test.open(TEST), *train.open(TRAIN)]
    assert 0 < opened.count(None) < len(opened)
    assert sum(file.stat().st_size for file in folder.glob("*.tar")) <= room
    for name, mapped in zip([*TEST, *TRAIN], opened, strict=True):
        data = (origin / name).read_bytes()
        part = mapped if mapped is not None else train.spans([(name, 0, len(data))])[0]
        assert bytes(part) == data


SCRIPT = """
import sys
from pathlib import Path
from skelpipe.shards.card import read_card
from skelpipe.shards.index import read_index
from skelpipe.stream.remote import Served, fetch_set
url, cache = sys.argv[1], Path(sys.argv[2])
folder = fetch_set(url, cache)
table = read_index(folder)
names = sorted(set(table["shard"].to_pylist()))
shards = Served(folder, read_card(folder), table, url)
assert all(shards.open(names)) and "torch" not in sys.modules
"""


def test_processes_share_a_cache(server: Server, origin: Path, cache: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, server.url, str(cache)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told.decode()
    (folder,) = cache.iterdir()
    for name in (*read_card(origin).files, "card.json"):
        assert (folder / name).read_bytes() == (origin / name).read_bytes()


def test_what_a_killed_process_was_fetching_is_removed(server: Server, cache: Path) -> None:
    folder = fetch_set(server.url, cache)
    old, new = (folder / f"{TRAIN[0]}.{name}.part" for name in ("old", "new"))
    for part in (old, new):
        part.touch()
    os.utime(old, (1e9, 1e9))
    Mapped(folder, select(folder, "train"), CPU)
    assert not old.exists()
    assert new.exists()  # it may be another's that is at it
    new.unlink()


def test_a_full_disk_is_not_the_servers_fault(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch_set(server.url, cache)
    asked = []

    def full(url: str, part: str) -> None:
        asked.append(url)
        Path(part).write_bytes(b"some")
        raise OSError(28, "No space left on device")

    source = Mapped(folder, select(folder, "train"), CPU)
    monkeypatch.setattr(source._payloads._shards._files, "get_file", full)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"cannot be stored[^$]*No space left[^$]*SKELPIPE_CACHE"):
        source.take(torch.tensor([0]))
    assert len(asked) == 1


@pytest.mark.parametrize(
    "url", ["pipe:cat x", "pipe://cat", "ftp://host/set", "file:///tmp/x", "http:/host/set"]
)
def test_other_schemes_are_refused(url: str, cache: Path) -> None:
    with pytest.raises(UserError, match=r"this kind of URL is not read[^$]*s3://"):
        fetch_set(url, cache)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("http://host/set", "aiohttp", "skelpipe[remote]"),
        ("s3://bucket/set", "s3fs", "skelpipe[s3]"),
        ("gs://bucket/set", "gcsfs", "skelpipe[gs]"),
    ],
)
def test_a_missing_extra_is_named(
    url: str, module: str, extra: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as error:
        fetch_set(url, cache)
    assert extra in str(error.value)


def test_any_file_system_of_fsspec_will_do(
    origin: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fsspec.filesystem("memory")
    for file in origin.iterdir():
        store.pipe_file(f"memory://bucket/set/{file.name}", file.read_bytes())
    monkeypatch.setattr(remote, "_filesystem", lambda url: store)
    folder = fetch_set("memory://bucket/set", cache)
    wanted = Mapped(origin, select(origin, "train"), CPU).take(torch.arange(12))
    for room in ("0", "1GB"):
        monkeypatch.setenv("SKELPIPE_CACHE_SIZE", room)
        same(wanted, Mapped(folder, select(folder, "train"), CPU).take(torch.arange(12)))
    store.rm("memory://bucket", recursive=True)


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads http with curl")
def test_plain_webdataset_reads_the_served_shards(server: Server, origin: Path) -> None:
    urls = [f"{server.url}/{name}" for name in TRAIN]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        pipeline = webdataset.WebDataset(urls, shardshuffle=False).decode()
        found = {item["__key__"] for item in pipeline}
        del pipeline
        gc.collect()
    assert found == set(select(origin, "train")["key"].to_pylist())


def test_a_command_takes_a_url(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKELPIPE_CACHE", str(cache))
    words = "evaluate --protocol knn --raw-features --recipe slim-tiny --device cpu --data"
    done = CliRunner().invoke(app, [*words.split(), server.url])
    assert done.exit_code == 0, done.output
    assert {path.name for path in cache.glob("*/*.tar")} == {*TRAIN, *TEST}
    refused = CliRunner().invoke(app, [*words.split(), "pipe:cat card.json"])
    assert isinstance(refused.exception, UserError)


def test_names_of_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(is_url(name) for name in ("https://a/b", "s3://b", "pipe:cat", "x+y://z"))
    assert not any(is_url(name) for name in ("data/shards", "/a://b", "C:\\sets", "."))
    for text, size in (("3", 3), ("1.5 GB", 15 * 10**8), ("200mb", 2 * 10**8), ("", 5 * 10**10)):
        monkeypatch.setenv("SKELPIPE_CACHE_SIZE", text)
        assert cache_size() == size
    for text in ("much", "-1", "3 XB", "kb"):
        monkeypatch.setenv("SKELPIPE_CACHE_SIZE", text)
        with pytest.raises(UserError, match="is no size"):
            cache_size()
