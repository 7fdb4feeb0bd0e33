"""A fetched day's rows as blocks: decoded, validated and hashed.

Imports pandas, pandera and pyarrow, so other modules import it on first use.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.exchanges.fetching import DayBatch
from affiliate_pipeline.http.bodies import REPLACEMENT
from affiliate_pipeline.landing.prepare import Block, Summary
from affiliate_pipeline.schema.decode import Parsed, damaged, parse
from affiliate_pipeline.schema.encode import copy_text, fingerprint
from affiliate_pipeline.schema.invalid import ColumnProblem, Invalid
from affiliate_pipeline.schema.raw_row import batches, split

BLOCK_BYTES = 4 << 20


def blocks_of(batch: DayBatch, endpoint: Endpoint) -> Iterator[Block]:
    """The day's rows, up to the first invalid block; raises `Invalid` at the end, with the problems of all rows."""
    within = None
    if isinstance(endpoint, Records) and endpoint.time_column:
        within = (endpoint.time_column, endpoint.start_ms(batch.day), endpoint.end_ms(batch.day))

    problems: list[ColumnProblem] = []
    rows_before = 0
    for chunks in batches(batch.chunks, BLOCK_BYTES):
        try:
            parsed = parse(endpoint.schema, chunks, within)
        except Invalid as invalid:
            problems += (replace(problem, row=rows_before + problem.row) for problem in invalid.problems)
            rows_before += sum(1 for _ in split(chunks))
            continue
        rows_before += len(parsed.table)
        if not problems:
            yield _block_of(parsed)

    if problems:
        raise Invalid(problems)


def _block_of(parsed: Parsed) -> Block:
    table = parsed.table
    text = copy_text(table)
    # Searching for a single byte first is much faster.
    is_damaged = REPLACEMENT[:1] in text and REPLACEMENT in text
    damaged_rows = damaged(table) if is_damaged else Counter[str]()
    return Block(text, Summary(len(table), fingerprint(table, text), parsed.unknown, damaged_rows))
