"""Variables whose secret values may be in files: `NAME_FILE` is then the path of the file with the value of `NAME`."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.settings import ALIAS_SEPARATOR, FILE_SUFFIX, malformed, secret_variables, stripped


class Variables(Mapping[str, str]):
    """Variables by name; a secret one whose value is in a file is listed as `NAME`, not as `NAME_FILE`.

    A file is read whenever its value is needed, so that one that cannot be read fails only what needs it.
    """

    def __init__(self, given: Mapping[str, str]):
        self._given = given

    def __getitem__(self, name: str) -> str:
        """The value; raises `SettingsError` if its file has none."""
        if self._in_file(name):
            return value_of(name, self._given.get)
        return self._given[name]

    def __contains__(self, name: object) -> bool:
        return name in self._given or self._in_file(name)

    def __iter__(self) -> Iterator[str]:
        candidates = {name.removesuffix(FILE_SUFFIX) for name in self._given if name.endswith(FILE_SUFFIX)}
        in_files = {name for name in candidates if self._in_file(name)}
        file_variables = {name + FILE_SUFFIX for name in in_files}
        others = [name for name in self._given if name not in file_variables]
        # A variable that is set and also in a file is one name.
        return iter(dict.fromkeys([*others, *sorted(in_files)]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _in_file(self, name: object) -> bool:
        # `secret_variables` computes the names at each call, so look for the file's variable first.
        if not isinstance(name, str) or f"{name}{FILE_SUFFIX}" not in self._given:
            return False
        return name.partition(ALIAS_SEPARATOR)[0] in secret_variables()


def value_of(name: str, given: Callable[[str], str | None]) -> str:
    """The value of a secret variable, or the text of its file; empty if neither is set.

    Raises `SettingsError`, which quotes neither the path nor the text: a secret may have been taken for a path.

    Args:
        name: The variable's name, without `_FILE`.
        given: Returns the value of a variable of this name.
    """
    file_variable = name + FILE_SUFFIX
    value = stripped(given(name))
    path = stripped(given(file_variable))
    if not path:
        return value
    if value:
        raise SettingsError(
            f"{name} and {file_variable} are both set", f"Remove {name} or {file_variable}", variable=name
        )

    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise malformed(file_variable, f"names a file that cannot be read ({error.strerror})") from None
    except ValueError:
        raise malformed(file_variable, "names a file that is not UTF-8 text") from None
    secret = stripped(text)
    if not secret:
        raise malformed(file_variable, "names an empty file")
    return secret
