"""A folder served over http on loopback, with faults made to order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


class Served(ThreadingHTTPServer):
    """Counts whole files and parts that were asked for; answers 503 as often as ``busy`` says."""

    daemon_threads = True

    def __init__(self, folder: Path, ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.ranges = ranges
        self.whole: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        name = self.path.strip("/")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        (self.server.parts if wanted else self.server.whole)[name] += 1
        if self.server.busy[name]:
            self.server.busy[name] -= 1
            self.send_error(503)
        elif self.server.cut[name]:
            self.server.cut[name] -= 1
            data = Path(self.translate_path(self.path)).read_bytes()
            self._answer(200, data[: len(data) // 2], len(data))
        elif wanted and self.server.ranges:
            data = Path(self.translate_path(self.path)).read_bytes()
            part = data[int(wanted[1]) : int(wanted[2]) + 1]
            self._answer(206, part, len(part))
        else:
            super().do_GET()

    def _answer(self, status: int, data: bytes, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(folder: Path, *, ranges: bool = True) -> Iterator[Served]:
    with Served(folder, ranges) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
