"""The vocabulary of code and documents: plain English, in the terms of Dagster, PostgreSQL, HTTP and finance.

Everything in a file counts: identifiers (split into their words), docstrings, comments, messages and prose.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("affiliate_pipeline", "affiliate_pipeline_tests", "benchmarks", "docs", "typings")
SUFFIXES = {".py", ".pyi", ".md", ".sql", ".j2", ".css", ".yaml", ".yml", ".toml"}

# Words that do not occur, with the terms to use.
REPLACED = {
    r"tells?|told|telling": "report, log, yield, return, alert",
    r"mend(s|ed|ing)?": "fix",
    r"remember(s|ed|ing)?|forgets?|forgot(ten)?|forgetting": "retain, expire, drop",
    r"trailing days": "lookback window",
    r"(?-i:(MOST|LEAST) [A-Z]+)": "MAX_…, MIN_…",
    r"observations?|observes?|observed": "snapshot; seen",
    r"wish(es|ed)?|wanted": "desired",
    r"repl(y|ies|ied|ying)": "response, respond",
    r"sweeps?|sweeping|swept": "fan-out",
    r"time walks?": "window walk",
    r"the watch": "the monitor for overdue partitions",
    r"leases?|leased": "slot lease",
    r"examin(e|es|ed|ing|ation|ations)": "health, findings",
    r"whoever|whomever|nobody|somebody|everybody|anybody": "any process, no other run",
    r"of ours": "internal error; our",
    r"(goes|go|went|going|gone) with": "is removed with",
    r"(stands?|stood|standing) (in|on|at|for)": "is in",
    r"(lies|lay|lying) (in|on|at|between)": "is within",
    r"(comes?|came|coming) to": "results in",
    r"besides?": "concurrently; in addition to",
    r"heard of|hears? of": "is noticed",
    r"due days?|days? due": "expected day, overdue day",
}
# Words that have another sense too ("the lock is held"), so that only their number is limited.
AMBIGUOUS = (
    r"asks?|asked|asking|answer(s|ed|ing|able)?|says?|said|saying|words?|turn(s|ed)?|"
    r"keeps?|kept|keeping|holds?|held|holding|memory"
)
MAX_AMBIGUOUS = 170
# Where these words are allowed, and why.
ALLOWED = {
    r"affiliate_pipeline_tests/test_language\.py": "the list itself",
    r".*/migrations/\d+_.*\.sql": "applied migrations do not change",
    r".*\bslot leases?\b": "the limiter's term for a slot taken until a time",
    r'.*(\baffiliate lease\b|"lease"|lease s\b|SLOT LEASE)': "the table's name is a contract; a constant of slot leases",
    r'.*(?i:\basset observation\b|"observation")': "Dagster's event, the only one that a failed partition can have",
    r".*command\[1:1\] = ": "`nobody`, a user of the operating system",
    r".*`tell\(\)`": "a method of files",
}


@cache
def lines() -> list[str]:
    """Each line with its path and number, split into words: `first_page` and `firstPage` are two words each."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in files()
        for number, line in enumerate(separated(path.read_text(encoding="utf-8")).splitlines(), start=1)
    ]


def separated(text: str) -> str:
    return re.sub("([a-z])(?=[A-Z])", r"\1 ", text).replace("_", " ").replace(".", " ")


def files() -> Iterator[Path]:
    """Every text file of the project's root and of `FOLDERS`, except the inputs of the test cases."""
    for path in [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]:
        is_input = re.search("affiliate_pipeline_tests/cases/.*/", f"{path.relative_to(ROOT)}")
        if path.is_file() and path.suffix in SUFFIXES and not is_input:
            yield path


@cache
def found(pattern: str) -> list[str]:
    """The lines whose text contains one of the words, each with its path and number."""
    words = re.compile(rf"^[^:]+:\d+: .*\b({pattern})\b", re.IGNORECASE)
    return [line for line in lines() if words.search(line)]


def test_words_with_a_standard_term_do_not_occur():
    allowed = re.compile("|".join(f"(?:{each})" for each in ALLOWED))
    wrong = [line for line in found("|".join(REPLACED)) if not allowed.match(line)]
    terms = [
        term for pattern, term in REPLACED.items() if any(re.search(rf"\b({pattern})\b", each, re.I) for each in wrong)
    ]
    assert not wrong, "\n".join([*wrong, f"Terms to use: {'; '.join(terms)}"])


def test_words_with_several_senses_are_rare():
    count = Counter(line.split(":")[0] for line in found(AMBIGUOUS))
    assert count.total() <= MAX_AMBIGUOUS, count.most_common(20)


def test_each_exception_is_needed():
    wrong = found("|".join(REPLACED))
    assert [place for place in ALLOWED if not any(re.match(place, line) for line in wrong)] == []
