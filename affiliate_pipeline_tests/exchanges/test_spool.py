"""The spool: chunks are read in order, as often as needed, from memory and from its temporary file."""

from affiliate_pipeline.exchanges.spool import IN_MEMORY_BYTES, Spool


def test_chunks_are_read_in_order_and_repeatedly():
    chunks = [b"a", b"", b"b" * IN_MEMORY_BYTES, b"c", b"d" * 10]
    spool = Spool(chunks[:2])
    for chunk in chunks[2:]:
        spool.append(chunk)
    assert list(spool) == list(spool) == chunks


def test_chunks_appended_after_reading_are_read_too():
    spool = Spool([b"a"])
    assert list(spool) == [b"a"]
    spool.append(b"b")
    assert list(spool) == [b"a", b"b"]


def test_an_empty_spool_has_no_chunks():
    assert list(Spool()) == []
