"""Prepared sets on a server, through fsspec: http(s)://, s3:// and gs:// by whole shards.

A set is stood for by a local folder with its card, its index and `REMOTE`, a file that names the
URL. Whatever takes a prepared set takes that folder; its shards are fetched into it when samples of
them are first read. Every shard is compared with the card's sha256 once it is there, and every
payload with the index's crc32 whenever it is read, as those of local sets.

Shards beyond the size of the cache are not kept: their samples are read by byte ranges.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import pyarrow as pa

from skelpipe.errors import UserError
from skelpipe.shards.card import CARD, Card, FileStamp, parse_card
from skelpipe.shards.index import INDEX
from skelpipe.stream.payloads import Span, map_file

REMOTE = "remote.json"

_EXTRA = {"http": "remote", "https": "remote", "s3": "s3", "gs": "gs"}
_DEFAULT_SIZE = "50GB"
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_ATTEMPTS = 4
_WAIT = 0.5  # seconds before the second attempt, twice as long before each further one
_SILENCE = 60.0  # seconds without a byte after which an http server counts as gone
_AT_ONCE = 4  # shards
_STALE = 3600.0  # seconds after which what another process was fetching is nobody's any more
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)  # the server can do nothing about

Answer = TypeVar("Answer")


def is_url(name: str) -> bool:
    """Whether a data set is named by URL rather than by folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|pipe:", name) is not None


def cache_folder() -> Path:
    """Where remote sets are kept: $SKELPIPE_CACHE, else ~/.cache/skelpipe."""
    return Path(os.environ.get("SKELPIPE_CACHE") or Path.home() / ".cache" / "skelpipe")


def cache_size() -> int:
    """Bytes that all shards in the cache may take: $SKELPIPE_CACHE_SIZE, else 50 GB.

    Raises:
        UserError: The variable holds no size.
    """
    text = os.environ.get("SKELPIPE_CACHE_SIZE") or _DEFAULT_SIZE
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?b|)", text.strip().lower())
    if not found:
        raise UserError("SKELPIPE_CACHE_SIZE is no size", found=text, expected="such as 200GB")
    return int(float(found[1]) * _UNITS[found[2]])


def fetch_set(url: str, cache: Path | None = None) -> Path:
    """Fetch card and index of a remote set; its shards come when they are read.

    Args:
        url: Of the folder that holds card.json.
        cache: Where to keep it, by default `cache_folder`.

    Returns:
        The local folder, named by URL and card: another set at the same URL has another.

    Raises:
        UserError: A scheme that is not served, a missing extra, or no whole set at the URL.
    """
    url = url.rstrip("/")
    files = _filesystem(url)
    card_bytes = _patiently(f"{url}/{CARD}", lambda: files.cat_file(f"{url}/{CARD}"))
    card = parse_card(card_bytes, f"{url}/{CARD}")
    cache = cache or cache_folder()
    folder = cache / hashlib.sha256(f"{url} {card.digest}".encode()).hexdigest()[:16]
    stamp = card.files.get(INDEX)
    if stamp is None or not _is(folder / INDEX, stamp):
        index = _patiently(f"{url}/{INDEX}", lambda: files.cat_file(f"{url}/{INDEX}"))
        found = hashlib.sha256(index).hexdigest()
        if stamp is None or found != stamp.sha256:
            raise _not_the_cards(f"{url}/{INDEX}", len(index), found, stamp)
        _write(folder / INDEX, index)
    _write(folder / CARD, card_bytes)
    _write(folder / REMOTE, json.dumps({"url": url}).encode())
    return folder


def url_of(folder: Path) -> str | None:
    """The URL of the set that a folder of `fetch_set` stands for; None of any other folder.

    Raises:
        UserError: The record is damaged.
    """
    file = Path(folder) / REMOTE
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_bytes())["url"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            "the record of a remote set is damaged",
            file=file,
            found=error,
            remedy="remove its folder, and name the URL with --data again",
        ) from error


class Served:
    """The shards of a remote set, fetched on demand into its folder; see `payloads.Shards`.

    Shards are kept while there is room, and none is ever removed for another of the same table: so
    no shard is fetched over and over. To make room, shards of other parts and sets that were not
    opened for the longest time are removed at the start; a process that reads one keeps reading it.

    Args:
        folder: Of `fetch_set`.
        card: Its card.
        table: The samples that will be read.
        url: Of the set.
        size: Bytes of the cache, by default `cache_size`.

    Raises:
        UserError: The index names a shard that the card does not.
    """

    def __init__(
        self, folder: Path, card: Card, table: pa.Table, url: str, size: int | None = None
    ) -> None:
        self.remedy = f"the set at {url} is damaged: `skelpipe verify` tells where, run beside it"
        self._folder, self._url = folder, url
        self._files = _filesystem(url)
        names = sorted(table["shard"].unique().to_pylist())
        for name in names:
            if name not in card.files:
                raise UserError("the card knows no such shard", file=f"{url}/{CARD}", found=name)
        self._stamps = {name: card.files[name] for name in names}
        self._locks = {name: Lock() for name in names}
        self._room = cache_size() if size is None else size
        self._kept = _make_room(folder, self._stamps, self._room)
        self._coming: dict[str, int] = {}  # bytes of shards that are being fetched
        self._ranges_work = False
        self._range_lock, self._room_lock = Lock(), Lock()
        _drop_stale_parts(folder.parent)

    def size(self, name: str) -> int:
        return self._stamps[name].size

    def open(self, names: Sequence[str]) -> list[memoryview | None]:
        kept = [name for name in names if name in self._kept]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            mapped = dict(zip(kept, threads.map(self._map, kept), strict=True))
        return [mapped.get(name) for name in names]

    def renew(self, name: str) -> memoryview:
        with self._locks[name]:
            return self._fetch(name)

    def spans(self, wanted: Sequence[Span]) -> list[bytes]:
        with self._range_lock:
            if not self._ranges_work:  # or every sample would bring its whole shard
                self._spans(wanted[:1])
                self._ranges_work = True
        return self._spans(wanted)

    def _spans(self, wanted: Sequence[Span]) -> list[bytes]:
        parts: dict[Span, bytes] = {}

        def ask() -> None:
            missing = [span for span in wanted if span not in parts]
            names, begins, ends = zip(*missing, strict=True)
            urls = [f"{self._url}/{name}" for name in names]
            found = self._files.cat_ranges(urls, list(begins), list(ends), on_error="return")
            failed = None
            for span, part in zip(missing, found, strict=True):
                if isinstance(part, BaseException):
                    failed = part
                else:
                    parts[span] = part
            if failed is not None:
                raise failed

        _patiently(f"{self._url}/{wanted[0][0]}", ask)
        for (name, begin, end), part in parts.items():
            if len(part) > end - begin:
                raise UserError(
                    "the server does not serve parts of a file",
                    file=f"{self._url}/{name}",
                    found=f"{len(part):,} bytes",
                    expected=f"bytes {begin:,} to {end:,} of it",
                    remedy="a cache that holds all shards needs none: SKELPIPE_CACHE_SIZE="
                    f"{-(-sum(stamp.size for stamp in self._stamps.values()) // 10**9)}GB or more",
                )
        return [parts[span] for span in wanted]

    def _map(self, name: str) -> memoryview | None:
        file, size = self._folder / name, self._stamps[name].size
        with self._locks[name]:
            if file.is_file() and file.stat().st_size == size:
                with suppress(OSError, UserError):  # where another process has just removed it
                    os.utime(file)
                    return map_file(file)
            file.unlink(missing_ok=True)
            with self._room_lock:
                taken = sum(_sizes(self._folder.parent).values()) + sum(self._coming.values())
                if taken + size > self._room:  # others have taken it
                    return None
                self._coming[name] = size
            try:
                return self._fetch(name)
            finally:
                with self._room_lock:
                    del self._coming[name]

    def _fetch(self, name: str) -> memoryview:
        """Fetch a whole shard, at most twice where it comes damaged."""
        url, stamp = f"{self._url}/{name}", self._stamps[name]
        part = _part_of(self._folder / name)
        try:
            for _ in range(2):
                _patiently(url, lambda: self._files.get_file(url, str(part)))
                with part.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found == stamp.sha256:
                    mapped = map_file(part)
                    part.replace(self._folder / name)
                    return mapped
            raise _not_the_cards(url, part.stat().st_size, found, stamp)
        finally:
            part.unlink(missing_ok=True)


def _filesystem(url: str) -> Any:
    """The fsspec file system of a URL; it is shared by threads."""
    scheme = url.partition(":")[0].lower()
    if scheme not in _EXTRA or not url.startswith(f"{scheme}://"):
        raise UserError(
            "this kind of URL is not read",
            found=url,
            expected=", ".join(f"{known}://…" for known in _EXTRA),
        )
    options: dict[str, Any] = {}
    try:
        import fsspec

        if scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=_SILENCE)
            options["client_kwargs"] = {"timeout": timeout}
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise UserError(
            f"reading {scheme}:// needs packages that are not installed",
            found=error,
            remedy=f"pip install 'skelpipe[{_EXTRA[scheme]}]'",
        ) from error


def _patiently(url: str, ask: Callable[[], Answer]) -> Answer:
    """What the server answers, asked again for a while where the fault may be the network's.

    Raises:
        UserError: It does not answer, or says that there is no such thing.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return ask()
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(
                "the server has no such file",
                file=url,
                found=error,
                remedy="name the URL of the folder that holds card.json",
            ) from error
        except Exception as error:  # back ends raise errors of their own libraries
            if isinstance(error, OSError) and error.errno in _LOCAL:
                raise UserError(
                    "what is fetched cannot be stored",
                    file=url,
                    found=error,
                    remedy="make room, or name another cache with SKELPIPE_CACHE",
                ) from error
            status = getattr(error, "status", None)
            refused = isinstance(error, PermissionError) or (
                isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
            )
            if refused or attempt == _ATTEMPTS:
                tried = "" if refused else f" in {attempt} attempts"
                raise UserError(
                    f"the server does not give the file{tried}",
                    file=url,
                    found=f"{type(error).__name__}: {error}",
                    remedy="check URL, network and access; what is fetched already is kept",
                ) from error
            time.sleep(_WAIT * 2 ** (attempt - 1))
    raise AssertionError


def _make_room(folder: Path, stamps: dict[str, FileStamp], size: int) -> set[str]:
    """Names of the shards that will be kept, after other shards have left the room they need."""
    kept: dict[Path, int] = {}
    for name, stamp in stamps.items():
        if sum(kept.values()) + stamp.size <= size:
            kept[folder / name] = stamp.size
    found = _sizes(folder.parent)
    others = [file for file in found if file not in kept]
    room = size - sum(kept.values()) - sum(found[file] for file in others)
    for file in sorted(others, key=_opened):
        if room >= 0:
            break
        file.unlink(missing_ok=True)
        room += found[file]
    return {file.name for file in kept}


def _sizes(cache: Path) -> dict[Path, int]:
    """Bytes of all shards in the cache."""
    sizes = {}
    for file in cache.glob("*/*.tar"):
        with suppress(FileNotFoundError):
            sizes[file] = file.stat().st_size
    return sizes


def _opened(file: Path) -> float:
    """When a shard was last opened; one that is gone comes first."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is(file: Path, stamp: FileStamp) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == stamp.sha256


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(file)
    try:
        part.write_bytes(data)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _part_of(file: Path) -> Path:
    """A name that no other process or thread writes under."""
    return file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")


def _drop_stale_parts(cache: Path) -> None:
    """Remove what killed processes were fetching."""
    for part in cache.glob("*/*.part"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > _STALE:
                part.unlink()


def _not_the_cards(url: str, size: int, sha256: str, stamp: FileStamp | None) -> UserError:
    return UserError(
        "the served file is not the card's",
        file=url,
        found=f"{size} bytes with sha256 {sha256}",
        expected=f"{stamp.size} bytes with sha256 {stamp.sha256}" if stamp else "no such file",
        remedy="upload the prepared set anew, all of its files; then start again",
    )
