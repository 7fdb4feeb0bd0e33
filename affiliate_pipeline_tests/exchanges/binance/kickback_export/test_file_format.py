"""What the history's answers and its file mean, whatever form they come in."""

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
        json.dumps(json.dumps({"url": URL}))[1:-1].replace("\\", ""),
        json.dumps({"url": URL.replace("&", "&amp;")}),
        json.dumps({"docs": "https://developers.binance.com/docs", "url": URL}),
        json.dumps({"help": "https://help.example/a.csv", "url": URL}),
        json.dumps({"url": URL, "mirror": URL.replace("Signature=b", "Signature=c")}),
    ],
)
def test_a_url_is_found_in_every_form(body):
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
def test_anything_else_means_that_there_is_no_file_yet(body, note):
    found = read_response(body)
    assert isinstance(found, Pending) and note in found.note
    assert "Signature" not in found.note


def test_urls_of_which_none_is_clearly_the_files_are_named_without_their_secrets():
    found = read_response(json.dumps([URL, URL.replace("part-00000", "part-00001")]).encode())
    assert isinstance(found, Pending) and "Signature" not in found.note
    assert "part-00000" in found.note and "part-00001" in found.note and "several URLs" in found.note


def test_a_url_that_was_escaped_for_html_is_as_it_was():
    assert read_response(URL.replace("&", "&amp;").encode()).secret == URL


def test_a_url_on_a_host_that_is_allowed_goes_before_others():
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


def test_a_url_is_no_secret_told():
    assert "Signature" not in repr(FileUrl(URL)) and "Signature" not in f"{FileUrl(URL)}"


@pytest.mark.parametrize("url", [URL, "https://amazonaws.com/x", "https://x.binance.com/x", "http://127.0.0.1:9/x"])
def test_a_file_of_the_exchanges_may_be_fetched(url):
    FileUrl(url).check_host("127.0.0.1")


@pytest.mark.parametrize(
    "url",
    [
        URL.replace("https", "http"),
        URL.replace("amazonaws.com", "amazonaws.com.evil.example"),
        URL.replace("s3.amazonaws.com", "evilamazonaws.com"),
        URL.replace("https://", "https://amazonaws.com@evil.example/"),
        URL.replace("https://", "https://user:word@"),
        "http://localhost/x",
    ],
)
def test_a_file_of_nobodys_may_not(url):
    with pytest.raises(Refused) as refused:
        FileUrl(url).check_host("127.0.0.1")
    assert "Signature" not in str(refused.value)


@pytest.mark.parametrize(
    "header", ["income,asset,symbol,time", "INCOME,Asset,SYMBOL,Time", '"income", asset ,symbol,"time"']
)
def test_a_header_is_read_in_every_case(header):
    assert rows(f"{header}\n1.20,USDT,BTCUSDT,{MS}\n") == [
        {"income": "1.20", "asset": "USDT", "symbol": "BTCUSDT", "time": MS}
    ]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_cells_are_separated_as_the_header_is(separator, line_end, encoding):
    lines = [["time", '"income"', "asset", "symbol", "note"], [str(MS), '"1,20"', "USDT", "BTCUSDT", '"a,b"']]
    text = line_end.join(separator.join(line) for line in lines)
    row = {"time": MS, "income": "1,20", "asset": "USDT", "symbol": "BTCUSDT", "note": "a,b"}
    assert rows(text.encode(encoding)) == [row]
    assert rows(f"sep={separator}{line_end}{text}".encode(encoding)) == [row]


@pytest.mark.parametrize(
    "amount", ["0.0000", "-0.1", "1E-8", "123456789012345678901234567890.123456789012345678", "+1", " 1", ""]
)
def test_an_amount_stays_as_it_stands_in_the_file(amount):
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
def test_a_time_is_milliseconds_or_text_of_utc(text, ms):
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
        # Seconds, or milliseconds cut short.
        f"{MS}"[:10],
        f"{MS}"[:11],
        f"{MS}"[:12],
        "1763000000.5",
        "2025-11-13 02:13:20.1234",
    ],
)
def test_a_time_that_is_none_is_quoted_with_its_line(text):
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
def test_a_file_without_rows_has_none(file):
    assert rows(file) == []


def test_line_ends_of_every_kind_and_empty_lines_make_no_row():
    assert len(rows(f"{HEADER.strip()}\r\n1,A,B,{MS}\r\n\r\n2,A,B,{MS}\r\n")) == 2


def test_a_file_of_gzip_that_was_packed_once_more_for_its_way_is_read():
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
def test_what_cannot_be_understood_is_quoted(file, problem):
    with pytest.raises(Unreadable) as error:
        rows(file)
    assert problem in str(error.value)


@pytest.mark.parametrize("file", [gzip.compress(HEADER.encode() * 99, mtime=0)[:-20], b"\x1f\x8bnonsense"])
def test_a_part_of_a_file_is_called_so(file):
    with pytest.raises(IncompleteFile, match="incomplete or not gzip"):
        rows(file)


def test_a_file_that_is_too_large_unpacked_is_refused(monkeypatch):
    monkeypatch.setattr(file_format, "MAX_FILE_BYTES", 1000)
    with pytest.raises(Refused, match="larger than"):
        rows(gzip.compress(HEADER.encode() + b"1" * 1_000_000))
