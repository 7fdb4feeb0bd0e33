"""The content hash of rows as a multiset."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fingerprint:
    """A hash of a multiset of rows.

    It ignores the order of the rows and changes if a row is added, lost or duplicated. Each of its four 64-bit parts is a
    sum over the rows, so the fingerprints of batches can be added.
    """

    parts: tuple[int, ...] = (0, 0, 0, 0)

    @classmethod
    def parse(cls, text: str) -> "Fingerprint":
        """The fingerprint whose `str` is this text."""
        # Each part is 16 hexadecimal digits.
        return cls(tuple(int(text[start : start + 16], base=16) for start in (0, 16, 32, 48)))

    def __add__(self, other: "Fingerprint") -> "Fingerprint":
        return Fingerprint(tuple((a + b) % 2**64 for a, b in zip(self.parts, other.parts, strict=True)))

    def __str__(self) -> str:
        return "".join(f"{part:016x}" for part in self.parts)
