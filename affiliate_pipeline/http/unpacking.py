"""Unpacking of a file that contains one text, up to a maximum size."""

import json
import lzma
import posixpath
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import IO, cast

from affiliate_pipeline.http.error_body import quote, read_error
from affiliate_pipeline.http.errors import Refused, Transient

# A gzip file in a ZIP archive in a .tar.gz has four layers; deeper nesting is suspicious.
MAX_LAYERS = 5
_PIECE_BYTES = 1 << 20
_MAX_NAMES = 5
# A group's name selects its reader in `_opened`: that of gzip also reads zlib, that of xz also reads LZMA.
_PACKED = (
    rb"(?s)(?P<gzip>\x1f\x8b|x[\x01\x5e\x9c\xda])|(?P<bz2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))|(?P<xz>\xfd7zXZ\0|\x5d\0\0)"
    rb"|(?P<zstd>\x28\xb5\x2f\xfd)|(?P<lz4>\x04\x22\x4d\x18)|(?P<zip>PK(?:\x03\x04|\x05\x06|\x07\x08))"
    rb"|(?P<tar>.{257}ustar)"
)
# What unpacking a damaged archive raises.
_DAMAGED = (
    *(EOFError, OSError, ValueError, LookupError, struct.error),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)
# What operating systems add to archives.
_JUNK = r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$)"
_OTHER_FORMATS = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office document, such as XLS",
    b"%PDF": "a PDF document",
    b"-----BEGIN PGP": "encrypted or signed (OpenPGP)",
}
_BINARY = rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]"


class Unreadable(Refused):
    """The file is complete but cannot be read."""


class NotTheFile(Unreadable):
    """The response is a page or an error instead of the file."""


class IncompleteFile(Transient):
    """A part of the file is missing or damaged."""


class _TooLarge(Exception):
    """The unpacked file exceeds the limit."""


def unpack_text(file: bytes, max_bytes: int) -> str:
    """The text of a file, which may be packed several times or not at all.

    All layers together may unpack to at most `max_bytes`. Raises `IncompleteFile`, or `Unreadable` (`NotTheFile` for a
    page or an error) with the reason: size, layers, password, number of files, format or encoding.
    """
    bytes_left = max_bytes
    layers = 0
    while packed := re.match(_PACKED, file):
        try:
            file = _unpacked(file, packed.lastgroup or "", bytes_left)
        except _TooLarge:
            raise Unreadable(f"the file is larger than {max_bytes >> 20} MiB unpacked") from None
        bytes_left -= len(file)
        layers += 1
        if layers > MAX_LAYERS:
            raise Unreadable(f"the file is packed more than {MAX_LAYERS} times")
    return _decoded(file)


def _unpacked(file: bytes, kind: str, bytes_left: int) -> bytes:
    """What is packed in the file; raises `_TooLarge` as soon as it exceeds `bytes_left`."""
    pieces: list[bytes] = []
    try:
        with _opened(file, kind, bytes_left) as stream:
            while piece := stream.read(_PIECE_BYTES):
                pieces.append(piece)
                bytes_left -= len(piece)
                if bytes_left < 0:
                    raise _TooLarge
    except (RuntimeError, NotImplementedError) as error:
        raise Unreadable(f"the file is a {kind.upper()} archive of a kind that cannot be unpacked ({error})") from None
    except _DAMAGED as error:
        raise IncompleteFile(f"the file is incomplete or not {kind} ({type(error).__name__})") from None
    return b"".join(pieces)


def _opened(file: bytes, kind: str, bytes_left: int) -> IO[bytes]:
    match kind:
        case "zip":
            return _opened_zip(zipfile.ZipFile(BytesIO(file)), bytes_left)
        case "tar":
            return _opened_tar(tarfile.open(fileobj=BytesIO(file), mode="r:"), len(file))
        case "xz":
            return lzma.LZMAFile(BytesIO(file))
        case _:
            # Imported here: most processes unpack nothing.
            import pyarrow

            return pyarrow.CompressedInputStream(pyarrow.BufferReader(file), kind)


def _opened_zip(archive: zipfile.ZipFile, bytes_left: int) -> IO[bytes]:
    names = archive.namelist()
    if "[Content_Types].xml" in names or "mimetype" in names:
        raise Unreadable("the file is an Office document, such as a spreadsheet (XLSX), and not text")
    name = _only("a ZIP archive", [name for name in names if not name.endswith("/")])
    if archive.getinfo(name).flag_bits & 1:
        raise Unreadable(f"the file is a ZIP archive with a password (it contains {_quoted([name])})")
    # The readers of bzip2 and LZMA entries unpack without a limit.
    if archive.getinfo(name).file_size > bytes_left:
        raise _TooLarge
    return archive.open(name)


def _opened_tar(archive: tarfile.TarFile, file_size: int) -> IO[bytes]:
    members = archive.getmembers()
    # Each content fills whole blocks, and an empty block ends the archive.
    end_of_contents = max((member.offset_data + _in_whole_blocks(member.size) for member in members), default=0)
    if file_size < end_of_contents + tarfile.BLOCKSIZE:
        raise IncompleteFile("the file is an incomplete tar archive")
    files = [member for member in members if member.isfile()]
    name = _only("a tar archive", [file.name for file in files])
    # Pass `extractfile` the entry and not its name, which a folder may have too.
    [file] = [file for file in files if file.name == name]
    return cast(IO[bytes], archive.extractfile(file))


def _in_whole_blocks(size: int) -> int:
    """The size rounded up to a multiple of a tar archive's blocks."""
    blocks = (size + tarfile.BLOCKSIZE - 1) // tarfile.BLOCKSIZE
    return blocks * tarfile.BLOCKSIZE


def _only(what: str, names: Sequence[str]) -> str:
    """The name of the only file, not counting those that operating systems add; raises `Unreadable`."""
    own_names = [name for name in names if not re.search(_JUNK, posixpath.normpath(name))]
    if len(own_names) == 1:
        return own_names[0]
    if not own_names:
        raise Unreadable(f"the file is {what} with no file instead of one")
    listed = _quoted(own_names[:_MAX_NAMES])
    if len(own_names) > _MAX_NAMES:
        listed += f" and {len(own_names) - _MAX_NAMES} more"
    raise Unreadable(f"the file is {what} with {len(own_names)} files ({listed}) instead of one")


def _quoted(names: Sequence[str]) -> str:
    return quote(", ".join(names).encode(errors="replace"))


def _decoded(file: bytes) -> str:
    """The text of a file that is not packed; raises `Unreadable`."""
    for magic, name in _OTHER_FORMATS.items():
        if file.startswith(magic):
            raise Unreadable(f"the file is {name}, and not CSV text")
    encoding = json.detect_encoding(file)
    try:
        text = file.decode(encoding)
    except UnicodeDecodeError as error:
        raise _undecodable(file, encoding, error) from None
    if "\0" in text[:512]:
        raise _binary(file)
    _check_is_table(text)
    return text


def _undecodable(file: bytes, encoding: str, error: UnicodeDecodeError) -> Unreadable:
    if encoding != "utf-8":
        return Unreadable(f"the file is not the {encoding.upper()} text that it seems to be ({error.reason})")
    if re.search(_BINARY, file[:4096]):
        return _binary(file)
    byte = f"byte {error.start} (0x{file[error.start]:02x})"
    return Unreadable(
        f"the file is text, but neither UTF-16 nor UTF-8: not UTF-8 at {byte}, as in Latin-1 or Windows-1252"
    )


def _binary(file: bytes) -> Unreadable:
    beginning = file[:8].hex(" ")
    return Unreadable(f"the file is binary data of an unknown kind, and not CSV text (it begins with {beginning})")


def _check_is_table(text: str) -> None:
    """Raise `NotTheFile` for a page or an error instead of the table, `Unreadable` for other JSON."""
    start = text.lstrip()[:4096]
    if start[:1] not in ("<", "{", "["):
        return

    error = read_error(start.encode(errors="replace"))
    if error.is_markup:
        kind = "a web page (HTML)" if re.search("<(html|!doctype html)", start, re.IGNORECASE) else "XML"
        # A page without text is quoted with its tags.
        raise NotTheFile(f"the response is {kind} and not the file: {error.message or quote(start.encode())!r}")

    code = "" if error.code is None else f"code {error.code}: "
    problem = f"the response is JSON and not CSV text: {code}{error.message}"
    is_error_object = start.startswith("{") and error.is_message
    if error.is_failure or is_error_object:
        raise NotTheFile(problem)
    raise Unreadable(problem)
