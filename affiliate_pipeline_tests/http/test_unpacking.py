"""Every usual compression, archive and encoding is unpacked within the limit; any other file is reported by its kind."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Literal

import pyarrow
import pytest

from affiliate_pipeline.http.errors import Refused
from affiliate_pipeline.http.unpacking import IncompleteFile, NotTheFile, Unreadable, unpack_text

TEXT = "income,asset\n" + "".join(f"{number}.50,USDT\n" for number in range(5000))
FILE = TEXT.encode()
LIMIT = 1 << 20
# The preset with a dictionary of 256 KiB: the default one, of 8 MiB, exceeds what the limit test allows.
SMALL = 0


def zipped(*entries: tuple[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", kind) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return packed.getvalue()


class _Stream:
    """A writable file that cannot seek."""

    def __init__(self) -> None:
        self.content = b""

    def write(self, data: bytes) -> int:
        self.content += data
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def zipped_as_stream(content: bytes) -> bytes:
    """A ZIP archive with data descriptors, as a server streams it."""
    packed = _Stream()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.csv", content)
    return packed.content


def zip64(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.csv", "w", force_zip64=True) as entry:
            entry.write(content)
    return packed.getvalue()


def tarred(
    *entries: tuple[str, bytes],
    mode: Literal["w:", "w:gz", "w:bz2"] = "w:",
    format: Literal[1, 2] = tarfile.PAX_FORMAT,
    also_folder: bool = False,
) -> bytes:
    """The entries and a folder; with `also_folder`, each entry is followed by a folder of the same name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=format) as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
            if also_folder:
                folder = tarfile.TarInfo(name)
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
    return packed.getvalue()


def compressor(name: str) -> Callable[[bytes], bytes]:
    def pack(content: bytes) -> bytes:
        packed = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(packed, name) as stream:
            stream.write(content)
        return packed.getvalue().to_pybytes()

    return pack


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda content: content,
    "gzip": gzip.compress,
    "gzip of several members": lambda content: gzip.compress(content[:100]) + gzip.compress(content[100:]),
    "gzip twice": lambda content: gzip.compress(gzip.compress(content)),
    "zlib": zlib.compress,
    "zlib, fast": lambda content: zlib.compress(content, 1),
    "bzip2": bz2.compress,
    "bzip2 of several streams": lambda content: bz2.compress(content[:100]) + bz2.compress(content[100:]),
    "xz": partial(lzma.compress, preset=SMALL),
    "lzma": partial(lzma.compress, format=lzma.FORMAT_ALONE, preset=SMALL),
    "zstd": compressor("zstd"),
    "zstd of several frames": lambda content: compressor("zstd")(content[:100]) + compressor("zstd")(content[100:]),
    "lz4": compressor("lz4"),
    "zip": lambda content: zipped(("x.csv", content)),
    "zip, stored": lambda content: zipped(("x.csv", content), kind=zipfile.ZIP_STORED),
    "zip, bzip2": lambda content: zipped(("x.csv", content), kind=zipfile.ZIP_BZIP2),
    "zip, lzma": lambda content: zipped(("x.csv", content), kind=zipfile.ZIP_LZMA),
    "zip as stream": zipped_as_stream,
    "zip64": zip64,
    "zip with a folder": lambda content: zipped(("a/", b""), ("a/x.csv", content)),
    "zip from macOS": lambda content: zipped(
        ("x.csv", content), ("__MACOSX/._x.csv", b"\0\5"), (".DS_Store", b"x"), ("a/Thumbs.db", b"")
    ),
    "zip of gzip": lambda content: zipped(("x.csv.gz", gzip.compress(content))),
    "gzip of zip": lambda content: gzip.compress(zipped(("x.csv", content))),
    "tar": lambda content: tarred(("a/x.csv", content)),
    "tar from macOS": lambda content: tarred(("./._x.csv", b"\0"), ("./x.csv", content)),
    "GNU tar": lambda content: tarred(("a/" + "x" * 150, content), format=tarfile.GNU_FORMAT),
    "tar with a folder of the same name": lambda content: tarred(("x.csv", content), also_folder=True),
    "tar.gz": lambda content: tarred(("x.csv", content), mode="w:gz"),
    "tar.bz2": lambda content: tarred(("x.csv", content), mode="w:bz2"),
    "tar.xz": lambda content: lzma.compress(tarred(("x.csv", content)), preset=SMALL),
}


@pytest.mark.parametrize("pack", PACKINGS.values(), ids=PACKINGS)
def test_every_packing_is_unpacked(pack):
    assert unpack_text(pack(FILE), LIMIT) == TEXT
    assert unpack_text(pack(b""), LIMIT) == ""


@pytest.mark.parametrize("pack", list(PACKINGS.values())[1:], ids=list(PACKINGS)[1:])
def test_the_limit_applies_to_the_unpacked_size(pack):
    bomb = pack(b"1" * 8_000_000)
    tracemalloc.start()
    with pytest.raises(Refused, match="larger than 1 MiB unpacked"):
        unpack_text(bomb, LIMIT)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Unpacking stopped at the limit. A stored archive is itself as large as its content.
    assert used < 6_000_000 + len(bomb)


def test_the_limit_applies_to_nested_packings():
    layers = gzip.compress(zipped(("x.csv", b"1" * 700_000), kind=zipfile.ZIP_STORED))
    with pytest.raises(Refused, match="larger than"):
        unpack_text(layers, LIMIT)


def test_a_wrong_size_in_an_archive_is_noticed():
    packed = bytearray(zipped(("x.csv", b"1" * 5_000_000)))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        position = packed.index(signature) + offset
        packed[position : position + 4] = (1000).to_bytes(4, "little")
    with pytest.raises((IncompleteFile, Unreadable)):
        unpack_text(bytes(packed), LIMIT)


@pytest.mark.parametrize(
    "pack",
    [pack for name, pack in PACKINGS.items() if name != "plain"],
    ids=[name for name in PACKINGS if name != "plain"],
)
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_truncated_packed_file_is_reported_as_incomplete(pack, part):
    packed = pack(FILE)
    with pytest.raises(IncompleteFile, match="incomplete"):
        unpack_text(packed[: int(len(packed) * part)], LIMIT)


def test_a_corrupt_byte_is_noticed():
    packed = bytearray(zipped(("x.csv", FILE), kind=zipfile.ZIP_STORED))
    packed[1000] ^= 1
    with pytest.raises(IncompleteFile, match="incomplete"):
        unpack_text(bytes(packed), LIMIT)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"], ids=lambda name: name
)
@pytest.mark.parametrize("text", [TEXT, "income;ü\n1;€\n", ""])
def test_every_unicode_encoding_is_read(encoding, text):
    assert unpack_text(gzip.compress(text.encode(encoding)), LIMIT) == text


def test_a_big_endian_byte_order_mark_is_read():
    assert unpack_text(b"\xfe\xff" + TEXT.encode("utf-16-be"), LIMIT) == TEXT


UNREADABLE = {
    "several": (zipped(("a.csv", b"1"), ("b\n.csv", b"2")), "ZIP archive with 2 files (a.csv, b .csv)"),
    "many": (
        zipped(*((f"{number}.csv", b"") for number in range(9))),
        "9 files (0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 4 more",
    ),
    "none": (zipped(("a/", b"")), "ZIP archive with no file"),
    "no entry": (zipped(), "ZIP archive with no file"),
    "xlsx": (zipped(("[Content_Types].xml", b""), ("xl/workbook.xml", b"")), "spreadsheet (XLSX)"),
    "tar": (tarred(("a.csv", b"1"), ("b.csv", b"2")), "tar archive with 2 files (a.csv, b.csv)"),
    "deep": (
        gzip.compress(zipped(("x.zip", zipped(("x.zip", zipped(("x.zip", PACKINGS["tar.gz"](b"1")))))))),
        "more than 5",
    ),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "7z archive"),
    "rar": (b"Rar!\x1a\x07\x01\0", "RAR archive"),
    "parquet": (b"PAR1\x15\0", "Parquet"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", "XLS"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
    "pgp": (b"-----BEGIN PGP MESSAGE-----\n", "OpenPGP"),
    "png": (
        b"\x89PNG\r\n\x1a\n\0\0\xff",
        "binary data of an unknown kind, and not CSV text (it begins with 89 50 4e 47",
    ),
    "zeros": (bytes(100), "binary data of an unknown kind"),
    "latin-1": ("income,näme\n".encode("latin-1"), "not UTF-8 at byte 8 (0xe4), as in Latin-1"),
    "odd utf-16": (TEXT.encode("utf-16")[:-1], "not the UTF-16 text"),
    "json rows": (b'[{"income":"1.0"}]', "JSON"),
}


@pytest.mark.parametrize(("file", "name"), UNREADABLE.values(), ids=UNREADABLE)
def test_any_other_file_is_reported(file, name):
    with pytest.raises(Unreadable) as error:
        unpack_text(file, LIMIT)
    assert name in str(error.value) and "invalid start byte" not in str(error.value)
    assert not isinstance(error.value, NotTheFile)


def test_an_archive_with_a_password_is_reported():
    packed = bytearray(zipped(("x.csv", FILE)))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        packed[packed.index(signature) + offset] |= 1
    with pytest.raises(Unreadable, match=r"with a password \(it contains x.csv\)"):
        unpack_text(bytes(packed), LIMIT)


def test_an_archive_with_an_unknown_compression_is_reported():
    packed = bytearray(zipped(("x.csv", FILE)))
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        packed[packed.index(signature) + offset] = 98
    with pytest.raises(Unreadable, match="cannot be unpacked"):
        unpack_text(bytes(packed), LIMIT)


@pytest.mark.parametrize(
    ("body", "quote"),
    [
        (b"<!DOCTYPE html><html><title>Sign in</title></html>", "a web page (HTML) and not the file: 'Sign in'"),
        (b"<html>", "'<html>'"),
        (
            b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
            "XML and not the file: 'AccessDenied: Request has expired'",
        ),
        (b'{"code":-1003,"msg":"Too much"}', "JSON and not CSV text: code -1003: Too much"),
        (b'{"message":"being collected"}', "JSON and not CSV text: being collected"),
    ],
)
def test_an_error_body_in_place_of_the_file_is_quoted(body, quote):
    for packed in (body, gzip.compress(body)):
        with pytest.raises(NotTheFile) as error:
            unpack_text(packed, LIMIT)
        assert quote in str(error.value)
