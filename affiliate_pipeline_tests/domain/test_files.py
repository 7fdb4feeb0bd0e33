"""A file is replaced completely or not at all, and its errors name it."""

import errno
import os

import pytest

from affiliate_pipeline.domain.files import replacing


def test_a_file_appears_only_at_the_end(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert (path.read_text(), [*tmp_path.glob("x*")]) == ("new", [path])


def test_a_failed_block_leaves_the_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ValueError), replacing(path) as file:
        file.write(b"new")
        raise ValueError
    assert (path.read_text(), [*tmp_path.glob("x*")]) == ("old", [path])


def test_a_link_still_leads_to_the_file(tmp_path):
    path, link = tmp_path / "x", tmp_path / "link"
    link.symlink_to(path)
    with replacing(link) as file:
        file.write(b"new")
    assert link.is_symlink() and path.read_text() == "new"


def write_to_full_disk(_file: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("name", "kind"), [("", IsADirectoryError), ("missing/x", FileNotFoundError)])
def test_an_error_names_the_file_and_no_temporary_one(tmp_path, name, kind):
    path = tmp_path / name
    with pytest.raises(kind) as raised, replacing(path):
        pass
    assert (raised.value.filename, raised.value.filename2) == (str(path), None)


def test_an_error_of_writing_names_the_file(tmp_path):
    with pytest.raises(OSError) as raised, replacing(tmp_path / "x") as file:
        write_to_full_disk(file)
    assert raised.value.filename == str(tmp_path / "x")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as file:
        file.write(b"x")
    assert (pipe.is_fifo(), os.read(reader, 9)) == (True, b"x")
    os.close(reader)
