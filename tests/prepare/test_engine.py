from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import raw

from skelpipe.errors import UserError
from skelpipe.prepare import archive, engine, finish, plan, task
from skelpipe.prepare.engine import Preparation, Progress, prepare
from skelpipe.shards.card import read_card
from skelpipe.shards.index import read_index

SOME = raw.some_recordings()


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHARD_BYTES", 8000)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return raw.write_zip(tmp_path / "raw.zip", SOME)


def run(place: Path, out: Path, *splits: str, **options: Any) -> Preparation:
    options.setdefault("workers", 1)
    return prepare("ntu60", splits, raw=[place], out=out, **options)


def with_bad(count: int, good: int = 24) -> dict[str, bytes]:
    bad = {raw.key(subject=5, replication=1 + i): b"1\n-1\n" for i in range(count)}
    return raw.some_recordings(good) | bad


def test_sets_say_what_they_hold(place: Path, tmp_path: Path) -> None:
    result = run(place, tmp_path / "out", "xsub")
    (made,) = result.sets
    assert made.fresh
    assert made.folder == tmp_path / "out" / "ntu60" / "ctrgcn" / "xsub"
    card = read_card(made.folder)
    assert (card.mutual, card.apart) == (tuple(range(49, 60)), "subject")
    assert card == made.card
    assert (card.counts.train.samples, card.counts.test.samples) == (18, 6)
    assert card.counts.total.frames == 24 * 4
    assert card.counts.train.subjects == {1: 6, 2: 6, 4: 6}
    assert card.counts.published == {"train": 40091, "test": 16487}
    assert not card.missing_list.applied
    assert "24 of 56,578" in card.warnings[0]
    index = read_index(made.folder)
    assert index.num_rows == 24
    assert len(index["shard"].unique()) == len(card.files) - 2 == 4
    assert set(card.files) | {"card.json"} == set(os.listdir(made.folder))
    for row in index.to_pylist():
        shard = (made.folder / row["shard"]).read_bytes()
        payload = shard[row["offset"] : row["offset"] + row["size"]]
        assert payload.startswith(b"\x93NUMPY")
    assert not list(made.folder.parent.glob(".work-*"))


def test_bytes_depend_on_the_recordings_alone(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "a")  # all splits
    expected = raw.all_files(tmp_path / "a")
    assert {name.split("/")[2] for name in expected} == {"xsub", "xview"}
    run(place, tmp_path / "b", "xview")
    run(place, tmp_path / "b", "xsub")
    assert raw.all_files(tmp_path / "b") == expected
    run(raw.write_tar(tmp_path / "raw.tar", SOME), tmp_path / "c", "xview", "xsub", workers=2)
    assert raw.all_files(tmp_path / "c") == expected
    run(raw.write_folder(tmp_path / "raw", SOME), tmp_path / "d", workers=4)
    assert raw.all_files(tmp_path / "d") == expected


def test_no_time_place_or_host_stands_in_a_set(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "out", "xsub")
    for name, data in raw.all_files(tmp_path / "out").items():
        for trace in (str(tmp_path), os.uname().nodename, str(os.getpid()).zfill(7)):
            assert trace.encode() not in data, (name, trace)


def test_a_second_run_has_nothing_to_do(place: Path, tmp_path: Path) -> None:
    first = run(place, tmp_path / "out", "xsub")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    again = run(place, tmp_path / "out", "xsub")
    assert not again.sets[0].fresh
    assert again.sets[0].card == first.sets[0].card
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}


def test_another_set_in_the_way(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = run(place, out, "xsub").sets[0].folder
    other = raw.write_zip(tmp_path / "other.zip", raw.some_recordings(12))
    with pytest.raises(UserError, match="other raw data") as caught:
        run(other, out, "xsub")
    assert "--force" in str(caught.value)
    assert run(other, out, "xsub", force=True).sets[0].card.source.recordings == 12
    assert read_card(made).source.recordings == 12

    listed = tmp_path / "mine.list"
    listed.write_text(min(SOME))
    with pytest.raises(UserError, match="another missing list"):
        run(other, out, "xsub", missing_list=listed)
    (made / "train-000000.tar").unlink()
    with pytest.raises(UserError, match="damaged"):
        run(other, out, "xsub")
    (made / "card.json").unlink()
    with pytest.raises(UserError, match="stands in the way"):
        run(other, out, "xsub")
    (made / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="no prepared set"):
        run(other, out, "xsub", force=True)
    assert (made / "thesis.tex").exists()


def test_recordings_of_the_missing_list_are_left_out(place: Path, tmp_path: Path) -> None:
    listed = tmp_path / "mine.list"
    listed.write_text("\n".join([*sorted(SOME)[:3], raw.key(action=60)]))
    card = run(place, tmp_path / "out", "xsub", missing_list=listed).sets[0].card
    assert card.counts.total.samples == 21
    assert card.counts.missing == 3
    assert card.counts.rejected == {}
    assert card.missing_list.applied
    assert not card.missing_list.official
    assert "not the official one" in card.warnings[0]


def test_counts_above_the_published_ones_are_a_warning(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = engine.load_dataset("ntu60").model_copy(update={"published": 20})
    monkeypatch.setattr(engine, "load_dataset", lambda name: manifest)
    (warning,) = run(place, tmp_path / "out", "xsub").sets[0].card.warnings
    assert "official list of missing skeletons not applied" in warning
    assert manifest.missing.where in warning


def test_what_cannot_be_used_is_rejected_with_its_reason(tmp_path: Path) -> None:
    strange = {raw.key(subject=41): raw.plain(np.random.default_rng(1))}
    place = raw.write_zip(tmp_path / "raw.zip", with_bad(2) | strange)
    made = run(place, tmp_path / "out", "xsub", "xview", workers=2).sets
    lines = (made[0].folder / "rejected.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows == sorted(rows, key=lambda row: row["key"])
    assert [set(row) for row in rows] == [{"key", "source", "reason"}] * 3
    assert rows[0]["reason"] == (
        "wrong body count: line 2, found '-1', expected a whole number from 0"
    )
    assert made[0].card.counts.rejected == {"wrong body count": 2, "not in the lists of xsub": 1}
    assert made[1].card.counts.rejected == {"wrong body count": 2}
    assert made[1].card.counts.total.samples == 25


def test_a_shard_without_a_usable_recording_is_empty(tmp_path: Path) -> None:
    place = raw.write_zip(tmp_path / "raw.zip", {raw.key(subject=3): b"0\n"} | with_bad(0, 2))
    card = run(place, tmp_path / "out", "xsub").sets[0].card
    assert card.files["test-000000.tar"].size == 1024
    assert card.counts.test.samples == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_too_many_rejections_are_fatal(tmp_path: Path, workers: int) -> None:
    run(raw.write_zip(tmp_path / "a.zip", with_bad(10)), tmp_path / "out", "xsub", workers=workers)
    with pytest.raises(UserError, match="too many recordings") as caught:
        run(raw.write_zip(tmp_path / "b.zip", with_bad(11)), tmp_path / "b", workers=workers)
    assert "11 wrong body count" in str(caught.value)
    assert "S001C001P005R001A001.skeleton: wrong body count: line 2" in str(caught.value)
    assert not raw.all_files(tmp_path / "b")


def test_only_what_belongs_to_the_data_set_is_taken(tmp_path: Path) -> None:
    beyond = {raw.key(setup=18, subject=41, action=61): raw.plain(np.random.default_rng(1))}
    place = raw.write_zip(tmp_path / "both.zip", SOME | beyond)
    result = run(place, tmp_path / "out", "xsub")
    assert result.sets[0].card.counts.total.samples == 24
    assert not result.sets[0].card.counts.rejected
    assert result.notes == ("left out 1 recordings that do not belong to NTU RGB+D",)
    only = raw.write_zip(tmp_path / "only.zip", beyond)
    with pytest.raises(UserError, match="none of the recordings belongs to NTU RGB"):
        run(only, tmp_path / "b", "xsub")


def test_unknown_names_are_answered_with_the_nearest(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'xsub'"):
        run(place, tmp_path / "out", "xsup")
    with pytest.raises(UserError, match="ntu60"):
        prepare("ntu6", raw=[place], out=tmp_path / "out")
    with pytest.raises(UserError, match="did you mean 'ctrgcn'"):
        run(place, tmp_path / "out", "xsub", pipeline="ctrgnc")


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_reaches_the_end(place: Path, tmp_path: Path, workers: int) -> None:
    seen: list[Progress] = []
    run(place, tmp_path / "out", progress=seen.append, workers=workers)
    assert seen[0] == Progress(0, 24, 0, sum(map(len, SOME.values())))
    assert (seen[-1].recordings, seen[-1].size) == (24, seen[-1].of_size)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, reads: int, error: BaseException) -> list[str]:
    """Have the reader raise after so many recordings; returns the names of those that were read."""
    real, seen = archive.Reader.read, []

    def read(self: archive.Reader, member: archive.Member) -> bytes:
        if len(seen) == reads:
            raise error
        seen.append(member.source)
        return real(self, member)

    monkeypatch.setattr(archive.Reader, "read", read)
    return seen


def test_an_interrupted_run_continues(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(place, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 13, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(place, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*/*/x*"))
    finished = {
        shard: shard.stat().st_mtime_ns for shard in (tmp_path / "out").rglob(".work-*/*/t*.tar")
    }
    assert finished
    seen = interrupt_after(monkeypatch, 99, KeyboardInterrupt())
    run(place, tmp_path / "out")
    assert 11 <= len(seen) < 20  # what was done before is not read again
    assert raw.all_files(tmp_path / "out") == raw.all_files(tmp_path / "whole")
    moved = {tmp_path / "out/ntu60/ctrgcn" / Path(*shard.parts[-2:]): time
             for shard, time in finished.items()}  # fmt: skip
    assert {shard: shard.stat().st_mtime_ns for shard in moved} == moved


def test_a_run_cut_off_between_two_sets_continues(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(place, tmp_path / "whole")
    real = finish.put_in_place

    def only_xsub(made: Path, final: Path) -> None:
        if final.name != "xsub":
            raise KeyboardInterrupt
        real(made, final)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "put_in_place", only_xsub)
        with pytest.raises(KeyboardInterrupt):
            run(place, tmp_path / "out")
    seen = interrupt_after(monkeypatch, 99, KeyboardInterrupt())
    made = run(place, tmp_path / "out").sets
    assert [one.fresh for one in made] == [False, True]
    assert not seen
    assert raw.all_files(tmp_path / "out") == raw.all_files(tmp_path / "whole")


def test_a_run_killed_while_it_cleared_up_leaves_nothing_for_long(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_sweep", lambda home: None)
        run(place, tmp_path / "out", "xsub")
    assert list((tmp_path / "out").glob("*/*/.work-*"))
    assert not run(place, tmp_path / "out", "xsub").sets[0].fresh
    assert not list((tmp_path / "out").glob("*/*/.work-*"))


def test_a_full_disk_names_the_bytes_needed_and_continues(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(place, tmp_path / "whole")
    real, calls = task.write_whole, []

    def full(file: Path, data: bytes) -> None:
        calls.append(file)
        if len(calls) == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(task, "write_whole", full)
        with pytest.raises(UserError, match="the disk is full") as caught:
            run(place, tmp_path / "out")
    assert "bytes more" in str(caught.value)
    assert not list((tmp_path / "out").rglob(".new-*"))
    run(place, tmp_path / "out")
    assert raw.all_files(tmp_path / "out") == raw.all_files(tmp_path / "whole")


def test_two_runs_do_not_write_to_one_place(place: Path, tmp_path: Path) -> None:
    home = tmp_path / "out" / "ntu60" / "ctrgcn"
    with engine._held(home), pytest.raises(UserError, match="another skelpipe"):
        run(place, tmp_path / "out")


SCRIPT = """
import sys
from pathlib import Path
from skelpipe.prepare import plan
from skelpipe.prepare.engine import prepare

if __name__ == "__main__":
    plan.SHARD_BYTES = 20_000
    prepare("ntu60", raw=[Path(sys.argv[1])], out=Path(sys.argv[2]), workers=int(sys.argv[3]))
"""


def children(process: int) -> list[int]:
    """Processes that a process has started, by /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[
            0
        ] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("victim", ["run", "worker"])
def test_killed_processes(tmp_path: Path, victim: str) -> None:
    place = raw.write_zip(tmp_path / "raw.zip", raw.some_recordings(72, frames=60))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def command(out: str, workers: int) -> list[str]:
        return [sys.executable, str(script), str(place), str(tmp_path / out), str(workers)]

    subprocess.run(command("whole", 1), check=True)
    process = subprocess.Popen(command("out", 2), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").rglob("group-*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    workers = children(process.pid)
    if victim == "run":
        process.kill()
    else:
        for worker in workers:
            try:
                name = (Path("/proc") / str(worker) / "cmdline").read_text()
            except OSError:
                continue
            if "spawn_main" in name:
                os.kill(worker, signal.SIGKILL)
                break
    _, stderr = process.communicate(timeout=60)
    if victim == "worker" and process.returncode:
        assert "a worker process was killed" in stderr
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers)), "a worker outlived its run"
    subprocess.run(command("out", 1), check=True)
    assert raw.all_files(tmp_path / "out") == raw.all_files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_fifty_kills_at_random_moments(tmp_path: Path) -> None:
    place = raw.write_zip(tmp_path / "raw.zip", raw.some_recordings(480, frames=40))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def command(out: str, workers: int) -> list[str]:
        return [sys.executable, str(script), str(place), str(tmp_path / out), str(workers)]

    start = time.monotonic()
    subprocess.run(command("whole", 2), check=True)
    takes = time.monotonic() - start
    expected = raw.all_files(tmp_path / "whole")
    rng = np.random.default_rng(0)
    kills = finished = at_work = 0
    out = tmp_path / "out"
    while kills < 50:
        marked = {json.loads(f.read_text())["sha256"] for f in out.rglob("group-*.json")}
        before = {
            file: file.stat()
            for file in out.rglob("t*.tar")
            if hashlib.sha256(file.read_bytes()).hexdigest() in marked
        }
        process = subprocess.Popen(command("out", 2), start_new_session=True)
        try:
            process.wait(float(rng.uniform(0.3, 0.95)) * takes)
        except subprocess.TimeoutExpired:
            at_work += bool(list(out.rglob(".work-*/*")))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        for file, was in before.items():  # what was finished stays, or has moved as it is
            now = file if file.exists() else Path(*file.parts[:-3], *file.parts[-2:])
            assert (now.stat().st_mtime_ns, now.stat().st_ino) == (was.st_mtime_ns, was.st_ino)
        if process.returncode == 0:
            assert raw.all_files(out) == expected
            shutil.rmtree(out)
            finished += 1
    subprocess.run(command("out", 2), check=True)
    assert raw.all_files(out) == expected
    assert at_work > 25, (kills, at_work, finished)  # the kills did hit the work


def test_prepares_real_recordings(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "SHARD_BYTES", 64 << 20)
    place = real_data / "ui_prmd_as_ntu.zip"
    for made in run(place, tmp_path / "out", "xsub", "xview", workers=2).sets:
        assert (made.card.counts.train.samples, made.card.counts.test.samples) == (1200, 800)
        assert not made.card.counts.rejected
        assert "2,000 of 56,578" in made.card.warnings[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.slow
def test_ctrl_c_while_workers_start_ends_the_run(tmp_path: Path) -> None:
    place = raw.write_zip(tmp_path / "raw.zip", raw.some_recordings(240, frames=60))
    command = [sys.executable, "-m", "skelpipe.cli", "prepare", "ntu60", "--raw", str(place),
               "--out", str(tmp_path / "out"), "--workers", "2"]  # fmt: skip
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background with this signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(children(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert "the same command continues" in stderr
    assert "Traceback" not in stderr


def test_one_damaged_recording_of_many_samples_is_one(tmp_path: Path) -> None:
    from skelpipe.prepare.synth import write_recordings

    place = tmp_path / "pku.zip"
    write_recordings("pku1", place, seed=0, classes=4, subjects=7, replications=2, actions=14)
    with zipfile.ZipFile(place) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    victim = next(name for name in members if "Skeleton" in name)
    members[victim] = b"1 2 3\n"
    with zipfile.ZipFile(place, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    (made,) = prepare("pku1", ["xview"], raw=[place], out=tmp_path / "out", workers=1).sets
    assert made.card.counts.rejected["wrong number of fields"] > 10
