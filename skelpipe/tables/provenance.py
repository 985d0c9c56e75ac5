"""By what a number was made: hardware and the code's revision."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import skelpipe

JOURNAL = "work.jsonl"

Record = dict[str, Any]


def note(folder: Path, device: torch.device, **what: object) -> None:
    """Add a line to a run's journal: what was done or begun, when, on what, by which code."""
    record = {
        **what,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(device),
        "code": revision(),
    }
    with (folder / JOURNAL).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_journal(folder: Path) -> list[Record]:
    """The lines of a run's journal; one that a crash cut short is passed over."""
    try:
        lines = (folder / JOURNAL).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def hardware(device: torch.device) -> str:
    """The device in words: a GPU's name, or the processor with its cores and our threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    return f"{_processor()}, {cores} cores, threads: {threads}"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


@cache
def revision() -> str:
    """The commit of a checkout, and whether files differ from it; else the package's version."""
    root = Path(skelpipe.__file__).parent.parent
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        if commit:
            changed = _git(root, "status", "--porcelain", "--untracked-files=no")
            return f"commit {commit}{' with changes' if changed else ''}"
    return f"version {version('skelpipe')}"


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
