"""Wording shared by the messages of all packages."""


def count_of(number: int, noun: str) -> str:
    """The number with its noun, in the plural unless it is 1: `1 row`, `2 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
