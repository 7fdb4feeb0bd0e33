"""Chunks kept out of memory come back as they were, as often as asked for."""

from affiliate_pipeline.exchanges.spool import IN_MEMORY_BYTES, Spool


def test_chunks_come_back_in_order_as_often_as_needed():
    chunks = [b"a", b"", b"b" * IN_MEMORY_BYTES, b"c", b"d" * 10]
    spool = Spool(chunks[:2])
    for chunk in chunks[2:]:
        spool.append(chunk)
    assert list(spool) == list(spool) == chunks


def test_what_was_added_after_a_reading_is_there_too():
    spool = Spool([b"a"])
    assert list(spool) == [b"a"]
    spool.append(b"b")
    assert list(spool) == [b"a", b"b"]


def test_nothing_is_no_chunks():
    assert list(Spool()) == []
