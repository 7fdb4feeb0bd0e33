"""A table's rows as COPY text, and their fingerprint."""

import io
from hashlib import sha256

import numpy as np
import pyarrow as arrow
import pyarrow.csv

from affiliate_pipeline.schema.fingerprint import Fingerprint


def fingerprint(table: arrow.Table, copied: bytes) -> Fingerprint:
    """The fingerprint of the rows whose `copy_text` is `copied`."""
    rows = copied.split(b"\n")[:-1]
    if len(rows) != len(table):  # a text contains a line end
        rows = [copy_text(table.slice(index, 1))[:-1] for index in range(len(table))]
    # A digest is four parts of 64 bits; each part is added up over the rows, modulo 2**64.
    digests = b"".join([sha256(row).digest() for row in rows])
    sums = np.frombuffer(digests, "<u8").reshape(-1, 4).sum(axis=0, dtype=np.uint64)
    return Fingerprint(tuple(sums.tolist()))


def copy_text(table: arrow.Table) -> bytes:
    """The table as CSV for COPY in a UTC session: null is empty, an empty text is quoted."""
    # Instants without their zone are written twice as fast.
    schema = arrow.schema([_without_zone(field) for field in table.schema])
    text = io.BytesIO()
    pyarrow.csv.write_csv(table.cast(schema), text, pyarrow.csv.WriteOptions(include_header=False))
    return text.getvalue()


def _without_zone(field: arrow.Field) -> arrow.Field:
    return field.with_type(arrow.timestamp("ms")) if arrow.types.is_timestamp(field.type) else field
