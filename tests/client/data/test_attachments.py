"""Attachments of FHIR in other character sets and as HTML: read as a reader would, or refused."""

from __future__ import annotations

import base64

import pytest

from lorica.client.data.attachments import text_of_attachment, text_of_html
from lorica.common.errors import Code, LoricaError

NOTE = "Müller: 38° Fieber, façade, 5 µg"


def attachment(content: bytes, kind: str) -> dict[str, str]:
    return {"contentType": kind, "data": base64.b64encode(content).decode()}


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("latin-1", "ISO-8859-1"),
        ("latin-1", '"iso-8859-1"'),
        ("cp1252", "windows-1252"),
        ("utf-16", "UTF-16"),
        ("utf-8", "utf-8"),
    ],
)
@pytest.mark.parametrize("kind", ["text/plain; charset={}", "TEXT/PLAIN;charset={}; x=y"])
def test_the_character_set_that_is_named_is_used(charset: str, name: str, kind: str) -> None:
    given = attachment(NOTE.encode(charset), kind.format(name))
    assert text_of_attachment(given, "x") == NOTE


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_unnamed_is_utf8(mark: bytes) -> None:
    assert text_of_attachment(attachment(mark + NOTE.encode(), "text/plain"), "x") == NOTE


@pytest.mark.parametrize(
    ("content", "kind", "code"),
    [
        (NOTE.encode("latin-1"), "text/plain", Code.DATA_ENCODING),
        (NOTE.encode("latin-1"), "text/plain; charset=utf-8", Code.DATA_ENCODING),
        (b"x", "text/plain; charset=klingon", Code.DATA_ENCODING),
        (b"x", "text/plain; charset=base64", Code.DATA_ENCODING),
        (b"{\\rtf1 x}", "text/rtf", Code.DATA_MALFORMED),
        (b"%PDF", "application/pdf", Code.DATA_MALFORMED),
    ],
)
def test_what_cannot_be_read_is_refused(content: bytes, kind: str, code: Code) -> None:
    with pytest.raises(LoricaError) as caught:
        text_of_attachment(attachment(content, kind), "d.ndjson, line 3")
    assert caught.value.code is code
    assert caught.value.detail.startswith("d.ndjson, line 3")


def test_base64_in_lines_is_read_and_other_text_is_not() -> None:
    wrapped = base64.encodebytes(NOTE.encode() * 20).decode()
    assert text_of_attachment({"data": wrapped}, "x") == NOTE * 20
    with pytest.raises(LoricaError) as caught:
        text_of_attachment({"data": "no base64!"}, "x")
    assert caught.value.code is Code.DATA_MALFORMED


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>A rash.</p><p>No fever.</p>", "A rash.\nNo fever."),
        (
            "<html><head><style>p {}</style></head><body>A<br>B</body></html>",
            "A\nB",
        ),
        ("<table><tr><td>Hb</td><td>12&nbsp;g/dl</td></tr></table>", "Hb 12 g/dl"),
        ("a &lt; b &amp; c&#228;", "a < b & cä"),
        ("<script>alert('x')</script>kept<!-- not -->", "kept"),
        ("<p>one\n  sentence\n in lines</p>", "one sentence in lines"),
        ("<div>open <b>bold", "open bold"),
    ],
)
def test_html_becomes_what_a_reader_sees(markup: str, text: str) -> None:
    assert text_of_html(markup) == text


def test_html_in_another_character_set(tmp_path: object) -> None:
    given = attachment(f"<p>{NOTE}</p>".encode("latin-1"), "text/html; charset=iso-8859-1")
    assert text_of_attachment(given, "x") == NOTE
