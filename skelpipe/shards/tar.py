"""Shards: tar files in webdataset's layout whose bytes depend on the samples alone."""

from __future__ import annotations

import hashlib
import io
import tarfile
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

_BLOCK = 512


def payload_bytes(poses_MTJC: npt.NDArray[np.float32]) -> bytes:
    """A sample's poses, shape (M, T, J, 3), in metres, as the bytes of an .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(poses_MTJC), version=(1, 0))
    return buffer.getvalue()


class ShardWriter:
    """Writes samples one after the other: `KEY.x.npy`, then `KEY.json`, as plain ustar members.

    Neither time, owner nor mode of the writing process gets into the file.

    Args:
        file: Where to write, opened in binary mode, at its start.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def add(self, key: str, payload: bytes, description: bytes) -> int:
        """Append a sample: its .npy bytes and its JSON.

        Returns:
            The offset of the payload's first byte (the .npy header) in the shard.
        """
        offset = self._member(f"{key}.x.npy", payload)
        self._member(f"{key}.json", description)
        return offset

    def close(self) -> str:
        """End the archive and return the sha256 of all its bytes. The file itself stays open."""
        self._write(bytes(2 * _BLOCK))
        return self._digest.hexdigest()

    def _member(self, name: str, content: bytes) -> int:
        header = tarfile.TarInfo(name)  # mtime, uid, gid are 0 and the owner's names are empty
        header.size = len(content)
        header.mode = 0o644
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size
        self._write(content)
        self._write(bytes(-len(content) % _BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
