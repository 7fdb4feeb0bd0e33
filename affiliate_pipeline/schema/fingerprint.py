"""A table's rows as COPY text, and their fingerprint as a multiset."""

import io
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pyarrow as arrow
import pyarrow.csv


@dataclass(frozen=True)
class Fingerprint:
    """A hash of a multiset of rows.

    It ignores the order of the rows and changes if a row is added, lost or duplicated. Each of its four 64-bit parts is a
    sum over the rows, so the fingerprints of batches can be added.
    """

    parts: tuple[int, ...] = (0, 0, 0, 0)

    @classmethod
    def parse(cls, text: str) -> "Fingerprint":
        """The fingerprint whose `str` is this text."""
        return cls(tuple(int(text[i : i + 16], 16) for i in range(0, 64, 16)))

    def __add__(self, other: "Fingerprint") -> "Fingerprint":
        return Fingerprint(tuple((a + b) % 2**64 for a, b in zip(self.parts, other.parts, strict=True)))

    def __str__(self) -> str:
        return "".join(f"{part:016x}" for part in self.parts)


def fingerprint(table: arrow.Table, copied: bytes) -> Fingerprint:
    """The fingerprint of the rows whose `copy_text` is `copied`."""
    rows = copied.split(b"\n")[:-1]
    if len(rows) != len(table):  # a text contains a line end
        rows = [copy_text(table.slice(index, 1))[:-1] for index in range(len(table))]
    digests = b"".join([sha256(row).digest() for row in rows])
    sums = np.frombuffer(digests, "<u8").reshape(-1, 4).sum(axis=0, dtype=np.uint64)
    return Fingerprint(tuple(sums.tolist()))


def copy_text(table: arrow.Table) -> bytes:
    """The table as CSV for COPY in a UTC session: null is empty, an empty text is quoted."""
    # Instants without their zone are written twice as fast.
    utc = [
        field.with_type(arrow.timestamp("ms")) if arrow.types.is_timestamp(field.type) else field
        for field in table.schema
    ]
    text = io.BytesIO()
    pyarrow.csv.write_csv(table.cast(arrow.schema(utc)), text, pyarrow.csv.WriteOptions(include_header=False))
    return text.getvalue()
