"""The one text inside a packed and encoded file, with a limit on its unpacked size.

Errors name what any other file is. Knows no exchange and no column.
"""

import bz2
import gzip
import io
import lzma
import posixpath
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import BinaryIO, TypeVar

import pyarrow

from affiliate_pipeline.http.error_body import quote, read_error
from affiliate_pipeline.http.errors import Refused, Transient

# gzip, tar, ZIP and gzip around one file are four; deeper nesting is suspicious.
MAX_PACKINGS = 5
_PIECE_BYTES = 1 << 20
_MAX_NAMES = 5
# What the readers of archives raise for damaged ones.
_DAMAGED = (
    *(EOFError, OSError, ValueError, LookupError, struct.error),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)
# What operating systems add to archives.
_JUNK = re.compile(r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$)")
_STREAMS: Sequence[tuple[bytes, str, Callable[[bytes], BinaryIO]]] = (
    (b"\x1f\x8b", "gzip", lambda file: gzip.GzipFile(fileobj=io.BytesIO(file))),
    (b"BZh", "bzip2", lambda file: bz2.BZ2File(io.BytesIO(file))),
    (b"\xfd7zXZ\x00", "xz", lambda file: lzma.LZMAFile(io.BytesIO(file))),
    (b"\x5d\x00\x00", "lzma", lambda file: lzma.LZMAFile(io.BytesIO(file))),
    (b"\x28\xb5\x2f\xfd", "zstd", lambda file: pyarrow.CompressedInputStream(pyarrow.BufferReader(file), "zstd")),
    (b"\x04\x22\x4d\x18", "lz4", lambda file: pyarrow.CompressedInputStream(pyarrow.BufferReader(file), "lz4")),
)
_NAMED = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x1f\x9d", "packed with compress (.Z)"),
    (b"LZIP", "packed with lzip"),
    (b"\xff\x06\x00\x00sNaPpY", "packed with Snappy"),
    (b"MSCF", "a CAB archive"),
    (b"PAR1", "a Parquet file"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document, such as XLS"),
    (b"%PDF", "a PDF document"),
    (b"Salted__", "encrypted (OpenSSL)"),
    (b"-----BEGIN PGP", "encrypted or signed (OpenPGP)"),
    (b"age-encryption.org", "encrypted (age)"),
)
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
Entry = TypeVar("Entry")
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class Unreadable(Refused):
    """The file is complete and cannot be understood."""


class AnotherBody(Unreadable):
    """The response is a page or an error instead of the file."""


class NotWhole(Transient):
    """A part of the file is missing or damaged."""


def unpack_text(file: bytes, max_bytes: int) -> str:
    """The text; raises `Unreadable`, which names what the file is, and `NotWhole`.

    Args:
        max_bytes: the limit for the unpacked bytes of all packings together.
    """
    return _decoded(_unpacked(file, max_bytes))


def _unpacked(file: bytes, left: int) -> bytes:
    limit = left
    for _ in range(MAX_PACKINGS + 1):
        inner = _unpacked_once(file, left, limit)
        if inner is None:
            return file
        file = inner
        left -= len(file)
    raise Unreadable(f"the file is packed more than {MAX_PACKINGS} times")


def _unpacked_once(file: bytes, left: int, limit: int) -> bytes | None:
    """What is packed in the file; None if nothing is."""
    for magic, name, open_stream in _STREAMS:
        if file.startswith(magic) and (name != "bzip2" or file[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
            return _read(lambda: open_stream(file), name, left, limit)  # noqa: B023
    if file[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"):
        return _unzipped(file, left, limit)
    if file[257:262] == b"ustar":
        return _untarred(file, left, limit)
    if file[:1] == b"x" and int.from_bytes(file[:2], "big") % 31 == 0:
        return _inflated(file, left, limit)
    return None


def _read(open_stream: Callable[[], BinaryIO], name: str, left: int, limit: int) -> bytes:
    """The whole stream; raises `Unreadable` as soon as it exceeds the limit."""
    pieces, size = [], 0
    try:
        with open_stream() as stream:
            while piece := stream.read(_PIECE_BYTES):
                size += len(piece)
                if size > left:
                    raise Unreadable(f"the file is larger than {limit >> 20} MiB unpacked")
                pieces.append(piece)
    except _DAMAGED as error:
        raise NotWhole(f"the file is incomplete or not {name} ({type(error).__name__})") from None
    return b"".join(pieces)


def _inflated(file: bytes, left: int, limit: int) -> bytes | None:
    """What zlib packed; None if the first two bytes only look like it."""
    inflater = zlib.decompressobj()
    try:
        unpacked = inflater.decompress(file, left + 1)
    except zlib.error:
        return None
    if len(unpacked) > left:
        raise Unreadable(f"the file is larger than {limit >> 20} MiB unpacked")
    if not inflater.eof:
        raise NotWhole("the file is incomplete (zlib)")
    return unpacked


def _unzipped(file: bytes, left: int, limit: int) -> bytes:
    try:
        archive = zipfile.ZipFile(io.BytesIO(file))
        entries = archive.infolist()
    except (*_DAMAGED, NotImplementedError) as error:
        raise NotWhole(f"the file is an incomplete ZIP archive ({type(error).__name__})") from None
    names = [entry.filename for entry in entries]
    if "[Content_Types].xml" in names or "mimetype" in names:
        raise Unreadable("the file is an Office document, such as a spreadsheet (XLSX), and not text")
    files = [entry for entry in entries if not entry.filename.endswith("/")]
    entry = _only("a ZIP archive", files, [entry.filename for entry in files])
    if entry.flag_bits & 1:
        raise Unreadable(f"the file is a ZIP archive with a password (it holds {_shown([entry.filename])})")
    if entry.file_size > left:
        raise Unreadable(f"the file is larger than {limit >> 20} MiB unpacked")
    try:
        return _read(lambda: archive.open(entry), "ZIP", left, limit)  # type: ignore[arg-type, return-value]
    except (NotImplementedError, RuntimeError) as error:
        raise Unreadable(f"the file is a ZIP archive of a kind that cannot be unpacked ({error})") from None


def _untarred(file: bytes, left: int, limit: int) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(file), mode="r:") as archive:
            members = archive.getmembers()
            end = max((each.offset_data + -(-each.size // 512) * 512 for each in members), default=0)
            if len(file) < end + 512:
                raise NotWhole("the file is an incomplete tar archive")
            files = [each for each in members if each.isfile()]
            member = _only("a tar archive", files, [each.name for each in files])
            return _read(lambda: archive.extractfile(member), "tar", left, limit)  # type: ignore[arg-type, return-value]
    except _DAMAGED as error:
        raise NotWhole(f"the file is an incomplete tar archive ({type(error).__name__})") from None


def _only(what: str, entries: Sequence[Entry], names: Sequence[str]) -> Entry:
    """The one entry that is no junk of an operating system; raises `Unreadable`."""
    found = [
        (entry, name) for entry, name in zip(entries, names, strict=True) if not _JUNK.search(posixpath.normpath(name))
    ]
    if len(found) == 1:
        return found[0][0]
    holds = f"{len(found)} files ({_shown([name for _, name in found])})" if found else "no file"
    raise Unreadable(f"the file is {what} with {holds} instead of one")


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return quote(", ".join(names[:_MAX_NAMES]).encode(errors="replace")) + (f" and {more} more" if more > 0 else "")


def _decoded(file: bytes) -> str:
    """The text of a file that is not packed."""
    for magic, name in _NAMED:
        if file.startswith(magic):
            raise Unreadable(f"the file is {name}, and not CSV text")
    encoding = _encoding(file)
    try:
        text = file.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise Unreadable(
                f"the file is not the {encoding.upper()} text that it seems to be ({error.reason})"
            ) from None
        if _BINARY.search(file[:4096]):
            raise Unreadable(
                f"the file is binary data of an unknown kind, and not CSV text (it begins with {file[:8].hex(' ')})"
            ) from None
        raise Unreadable(
            f"the file is text, but neither UTF-16 nor UTF-8: not UTF-8 at byte {error.start} (0x{file[error.start]:02x}), "
            "as in Latin-1 or Windows-1252"
        ) from None
    if "\0" in text[:512]:
        raise Unreadable(
            f"the file is binary data of an unknown kind, and not CSV text (it begins with {file[:8].hex(' ')})"
        )
    _check_is_table(text)
    return text


def _encoding(file: bytes) -> str:
    for mark, encoding in _MARKS:
        if file.startswith(mark):
            return encoding
    # Without a mark: Latin letters in UTF-16 have a zero in every other byte.
    first = file[:16]
    if len(first) >= 4 and not len(first) % 2:
        if not any(first[::2]) and all(first[1::2]):
            return "utf-16-be"
        if not any(first[1::2]) and all(first[::2]):
            return "utf-16-le"
    return "utf-8"


def _check_is_table(text: str) -> None:
    start = text.lstrip()[:4096]
    if start[:1] not in ("<", "{", "["):
        return
    error = read_error(start.encode(errors="replace"))
    if error.is_page:
        kind = "a web page (HTML)" if re.search("<(html|!doctype html)", start, re.IGNORECASE) else "XML"
        # A page without a text is shown as it is.
        raise AnotherBody(f"what came is {kind} and not the file: {error.message or quote(start.encode())!r}")
    code = "" if error.code is None else f"code {error.code}: "
    problem = f"what came is JSON and not CSV text: {code}{error.message}"
    raise AnotherBody(problem) if error.is_failure or (error.is_message and start[:1] == "{") else Unreadable(problem)
