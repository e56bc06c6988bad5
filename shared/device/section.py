"""A part of an open file, as a file of its own."""

from __future__ import annotations

import io
import os
from typing import BinaryIO


class Section(io.RawIOBase):
    """Read-only and seekable: `size` bytes of `file` from `offset` on.

    It has its own position, so several sections of one open file can be read in turns. A file that
    ends too early reads as a section that does.
    """

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self.size = file, offset, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError("seek before the start of a section")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self.size - self._position))
        self._file.seek(self._offset + self._position)
        content = self._file.read(wanted)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
