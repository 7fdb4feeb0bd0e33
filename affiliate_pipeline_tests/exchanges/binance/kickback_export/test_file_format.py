"""The formats of the export's responses and of its file."""

import gzip
import json

import pytest

from affiliate_pipeline.exchanges.binance.kickback_export import file_format
from affiliate_pipeline.exchanges.binance.kickback_export.file_format import FileUrl, Pending, read_response, rows_of
from affiliate_pipeline.exchanges.binance.schemas import Kickback
from affiliate_pipeline.http.errors import Refused
from affiliate_pipeline.http.unpacking import IncompleteFile, Unreadable

URL = "https://bucket.s3.amazonaws.com/user-rebate/1/part-00000-c000.csv?AWSAccessKeyId=A&Expires=1&Signature=b%2Fc"
HEADER = "income,asset,symbol,time\n"
MS = 1_763_000_000_123


def rows(text: str | bytes) -> list[dict]:
    file = text if isinstance(text, bytes) else text.encode()
    return [json.loads(row) for _, row in rows_of(file, Kickback)]


@pytest.mark.parametrize(
    "body",
    [
        f'"{URL}"',
        URL,
        f"  {URL}\n",
        f'" {URL} "',
        json.dumps({"url": URL}),
        json.dumps({"code": 200, "data": URL}),
        URL.replace("https", "HTTPS"),
        json.dumps([URL]),
        json.dumps({"data": {"url": URL}}),
        json.dumps({"data": [{"file": {"downloadLink": URL, "size": 12}}]}),
        json.dumps({"data": json.dumps({"link": URL})}),
        json.dumps({"url": URL.replace("&", "&amp;")}),
        json.dumps({"docs": "https://developers.binance.com/docs", "url": URL}),
        json.dumps({"help": "https://help.example/a.csv", "url": URL}),
        json.dumps({"url": URL, "mirror": URL.replace("Signature=b", "Signature=c")}),
    ],
)
def test_the_files_url_is_found_in_any_json_or_text(body):
    found = read_response(body.encode())
    assert isinstance(found, FileUrl) and found.path == "/user-rebate/1/part-00000-c000.csv"


@pytest.mark.parametrize(
    ("body", "note"),
    [
        (b"", "an empty response"),
        (b'""', "an empty response"),
        (b" \n", "an empty response"),
        (b"null", "an empty response"),
        (b'{"code":200,"msg":"Historical data is collecting"}', "Historical data is collecting"),
        (b"{\n code: 200\n msg: collecting}", "collecting"),
        (b"[]", "[]"),
        (b"https://[x", "https://"),
        (b"\xff\xfe", "\ufffd"),
        (b"wait for " + URL.encode(), "wait for https://***"),
        (f'["wait for {URL}"]'.encode(), "https://***"),
    ],
)
def test_a_response_without_a_file_url_is_pending_with_a_redacted_note(body, note):
    found = read_response(body)
    assert isinstance(found, Pending) and note in found.note
    assert "Signature" not in found.note


def test_several_possible_urls_are_pending_and_listed_without_their_signatures():
    found = read_response(json.dumps([URL, URL.replace("part-00000", "part-00001")]).encode())
    assert isinstance(found, Pending) and "Signature" not in found.note
    assert "part-00000" in found.note and "part-00001" in found.note and "several URLs" in found.note
    assert not found.is_conclusive


def test_a_url_escaped_for_html_is_unescaped():
    assert read_response(URL.replace("&", "&amp;").encode()) == FileUrl(URL)


def test_a_url_on_an_allowed_host_is_preferred():
    other = "https://files.partner.example/x/1.csv?Signature=c"
    body = json.dumps({"a": other, "b": "https://elsewhere.example/2.csv"}).encode()
    found = read_response(body, "127.0.0.1", ["partner.example"])
    assert isinstance(found, FileUrl) and found.host == "files.partner.example"
    with pytest.raises(Refused, match="offered on files.partner.example.*BINANCE_FILE_HOSTS"):
        found.check_host("127.0.0.1")
    found.check_host("127.0.0.1", ["partner.example"])
    for refused in (
        "http://files.partner.example/x",
        "https://partner.example.evil.example/x",
        "https://xpartner.example",
    ):
        with pytest.raises(Refused):
            FileUrl(refused).check_host("127.0.0.1", ["partner.example"])


def test_a_file_url_hides_its_signature():
    assert "Signature" not in repr(FileUrl(URL)) and "Signature" not in f"{FileUrl(URL)}"


@pytest.mark.parametrize("url", [URL, "https://amazonaws.com/x", "https://x.binance.com/x", "http://127.0.0.1:9/x"])
def test_a_file_on_the_exchanges_own_host_or_a_known_one_is_allowed(url):
    FileUrl(url).check_host("127.0.0.1")


@pytest.mark.parametrize(
    "url",
    [
        URL.replace("https", "http"),
        URL.replace("amazonaws.com", "amazonaws.com.evil.example"),
        URL.replace("s3.amazonaws.com", "evilamazonaws.com"),
        URL.replace("https://", "https://amazonaws.com@evil.example/"),
        URL.replace("https://", "https://user:password@"),
        "http://localhost/x",
    ],
)
def test_a_file_elsewhere_or_without_https_or_with_a_password_is_refused(url):
    with pytest.raises(Refused) as refused:
        FileUrl(url).check_host("127.0.0.1")
    assert "Signature" not in str(refused.value)


@pytest.mark.parametrize(
    "header", ["income,asset,symbol,time", "INCOME,Asset,SYMBOL,Time", '"income", asset ,symbol,"time"']
)
def test_the_header_may_have_any_case_quotes_and_spaces(header):
    assert rows(f"{header}\n1.20,USDT,BTCUSDT,{MS}\n") == [
        {"income": "1.20", "asset": "USDT", "symbol": "BTCUSDT", "time": MS}
    ]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_separator_line_end_and_encoding_are_detected(separator, line_end, encoding):
    lines = [["time", '"income"', "asset", "symbol", "note"], [str(MS), '"1,20"', "USDT", "BTCUSDT", '"a,b"']]
    text = line_end.join(separator.join(line) for line in lines)
    row = {"time": MS, "income": "1,20", "asset": "USDT", "symbol": "BTCUSDT", "note": "a,b"}
    assert rows(text.encode(encoding)) == [row]
    assert rows(f"sep={separator}{line_end}{text}".encode(encoding)) == [row]


@pytest.mark.parametrize(
    "amount", ["0.0000", "-0.1", "1E-8", "123456789012345678901234567890.123456789012345678", "+1", " 1", ""]
)
def test_amounts_are_unchanged(amount):
    assert rows(f"{HEADER}{amount},USDT,BTCUSDT,{MS}")[0]["income"] == amount


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        (f"{MS}", MS),
        ("2025-11-13 02:13:20", 1_763_000_000_000),
        ("2025-11-13 02:13:20.123", MS),
        ("2025-11-13T02:13:20Z", 1_763_000_000_000),
        ("2025-11-13 10:13:20+08:00", 1_763_000_000_000),
    ],
)
def test_a_time_may_be_milliseconds_or_text_with_utc_as_the_default_zone(text, ms):
    assert [time for time, _ in rows_of(f"{HEADER}1,A,B,{text}".encode(), Kickback)] == [ms]
    assert rows(f"{HEADER}1,A,B,{text}")[0]["time"] == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "2025-11-13",
        "13.11.2025 02:13",
        "0",
        "99999999999999999",
        # Seconds, and milliseconds that lack digits.
        f"{MS}"[:10],
        f"{MS}"[:11],
        f"{MS}"[:12],
        "1763000000.5",
        "2025-11-13 02:13:20.1234",
    ],
)
def test_the_error_of_an_invalid_time_names_its_line(text):
    with pytest.raises(Unreadable, match="line 3 of the file has the time"):
        rows(f"{HEADER}1,A,B,{MS}\n1,A,B,{text}\n")


@pytest.mark.parametrize(
    "file",
    [
        "",
        HEADER,
        HEADER.strip(),
        "\ufeff" + HEADER,
        gzip.compress(b"", mtime=0),
        gzip.compress(HEADER.encode(), mtime=0),
    ],
)
def test_an_empty_file_and_a_file_with_only_a_header_have_no_rows(file):
    assert rows(file) == []


def test_empty_lines_are_ignored():
    assert len(rows(f"{HEADER.strip()}\r\n1,A,B,{MS}\r\n\r\n2,A,B,{MS}\r\n")) == 2


def test_a_file_compressed_twice_is_read():
    assert len(rows(gzip.compress(gzip.compress(f"{HEADER}1,A,B,{MS}\n".encode())))) == 1


def test_several_gzip_members_are_one_file():
    packed = gzip.compress(HEADER.encode()) + gzip.compress(f"1,A,B,{MS}\n".encode())
    assert len(rows(packed)) == 1


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (f"amount,asset,symbol,time\n1,A,B,{MS}", "lacks income: 'amount,asset,symbol,time'"),
        (f"1,A,B,{MS}\n", f"'1,A,B,{MS}'"),
        ("income/asset/symbol/time\n", "'income/asset/symbol/time'"),
        ("income,income,asset,symbol,time\n", "names a column twice"),
        ("<html>", "'<html>'"),
        (f"{HEADER}1,A,{MS}", "line 2 of the file has 3 cells under 4 columns"),
        (f'{HEADER}1,A,"B,{MS}', "line 2 of the file is not CSV"),
        (b"\xff" + HEADER.encode(), "not UTF-8"),
    ],
)
def test_the_error_of_a_malformed_file_describes_the_problem(file, problem):
    with pytest.raises(Unreadable) as error:
        rows(file)
    assert problem in str(error.value)


@pytest.mark.parametrize("file", [gzip.compress(HEADER.encode() * 99, mtime=0)[:-20], b"\x1f\x8bnonsense"])
def test_a_truncated_or_damaged_gzip_file_is_reported_as_incomplete(file):
    with pytest.raises(IncompleteFile, match="incomplete or not gzip"):
        rows(file)


def test_a_file_that_is_too_large_when_decompressed_is_refused(monkeypatch):
    monkeypatch.setattr(file_format, "MAX_FILE_BYTES", 1000)
    with pytest.raises(Refused, match="larger than"):
        rows(gzip.compress(HEADER.encode() + b"1" * 1_000_000))
