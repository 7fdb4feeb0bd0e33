"""Chunks of bytes in a temporary file, so that large days need little memory."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from os import SEEK_END
from tempfile import SpooledTemporaryFile

from affiliate_pipeline.domain.problem import AffiliateError

IN_MEMORY_BYTES = 1 << 20


class SpoolFull(AffiliateError):
    """The temporary folder cannot be written to."""


class Spool:
    """Chunks in the order added, to be read as often as needed.

    Up to a megabyte is in memory, more in an unnamed temporary file that is removed with this object.
    """

    def __init__(self, chunks: Iterable[bytes] = ()) -> None:
        self._file = SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 - closed with this object
        self._sizes: list[int] = []
        for chunk in chunks:
            self.append(chunk)

    def append(self, chunk: bytes) -> None:
        """Add a chunk; raises `SpoolFull`."""
        try:
            self._file.seek(0, SEEK_END)
            self._file.write(chunk)
            # Without the flush, a full disk would fail the reader instead.
            self._file.flush()
        except OSError as error:
            raise SpoolFull(
                f"the temporary folder cannot be written to ({error.strerror})",
                "Free space on its disk, or set TMPDIR to a folder on another disk, then materialize again",
            ) from None
        self._sizes.append(len(chunk))

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        for size in self._sizes:
            yield self._file.read(size)

    def __del__(self) -> None:
        with suppress(OSError):
            self._file.close()
