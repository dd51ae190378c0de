"""Texts in FHIR attachments: base64, in the character set that they name, HTML without its tags."""

from __future__ import annotations

import base64
import binascii
import codecs
from email.message import Message
from html.parser import HTMLParser
from typing import Any

from lorica.common.errors import Code, LoricaError

_MARKED_UP = frozenset({"text/html", "text/xml", "application/xhtml+xml", "application/xml"})
_PLAIN = frozenset({"text/plain", "text/markdown", "text/csv"})
_UNSEEN = frozenset({"script", "style", "head", "template"})
_LINES = frozenset(
    {"p", "div", "br", "tr", "li", "ul", "ol", "table", "section", "article", "header", "footer"}
    | {"h1", "h2", "h3", "h4", "h5", "h6", "dt", "dd", "pre", "blockquote", "paragraph", "title"}
)
_CELLS = frozenset({"td", "th"})


def text_of_attachment(attachment: dict[str, Any], where: str) -> str:
    """The text of an attachment with ``data``.

    Args:
        attachment: ``contentType`` says the kind and the character set, UTF-8 unless it does.
        where: begins the messages.

    Raises:
        LoricaError: LOR-303 not in its character set, or in none that is known; LOR-304 no text,
            or no base64.
    """
    header = Message()
    header["Content-Type"] = str(attachment.get("contentType") or "text/plain")
    kind = header.get_content_type()
    if kind not in _PLAIN | _MARKED_UP:
        raise LoricaError(
            Code.DATA_MALFORMED,
            f"{where}: an attachment is {kind!r}, not text.",
            mend="Export such documents as text/plain or text/html, or leave them out.",
        )
    try:
        content = base64.b64decode("".join(str(attachment["data"]).split()), validate=True)
    except (binascii.Error, ValueError):
        raise LoricaError(Code.DATA_MALFORMED, f"{where}: an attachment is not base64.") from None
    text = _decoded(content, header.get_content_charset() or "utf-8-sig", where)
    return text_of_html(text) if kind in _MARKED_UP else text


def _decoded(content: bytes, charset: str, where: str) -> str:
    try:
        charset = codecs.lookup(charset).name
    except LookupError:
        raise LoricaError(
            Code.DATA_ENCODING,
            f"{where}: an attachment is in the character set {charset!r}, which is not known.",
        ) from None
    try:
        return content.decode(charset)
    except (UnicodeDecodeError, LookupError):  # LookupError: a codec that is not of texts
        said = "UTF-8" if charset.startswith("utf-8") else charset.upper()
        raise LoricaError(
            Code.DATA_ENCODING,
            f"{where}: an attachment is not {said}.",
            mend="Have contentType name its character set, as in text/plain; charset=ISO-8859-1.",
        ) from None


def text_of_html(markup: str) -> str:
    """What a reader of a page sees: no tags, scripts and styles, paragraphs and rows as lines."""
    reader = _Reader()
    reader.feed(markup)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).split("\n"))
    return "\n".join(line for line in lines if line)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a line or a cell; look away from what is not shown."""
        if tag in _UNSEEN:
            self._unseen += 1
        self._divide(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag without content."""
        self._divide(tag)

    def handle_endtag(self, tag: str) -> None:
        """End a line or a cell."""
        if tag in _UNSEEN:
            self._unseen = max(0, self._unseen - 1)
        self._divide(tag)

    def handle_data(self, data: str) -> None:
        """Keep what is shown; line ends within a paragraph are blanks."""
        if not self._unseen:
            self.parts.append(" ".join(data.splitlines()) if "\n" in data or "\r" in data else data)

    def _divide(self, tag: str) -> None:
        name = tag.rpartition(":")[2]
        if name in _LINES:
            self.parts.append("\n")
        elif name in _CELLS:
            self.parts.append(" ")
