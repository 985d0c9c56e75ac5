"""What every page must be."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "img", "input", "br"}


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attributes if name in ("src", "href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open = self.open[:-1] if tag not in _VOID else self.open

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data.strip())


def words_of(text: str) -> list[str]:
    """The words of a page, element by element, once it is seen that it needs nothing else."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert all(link.startswith("data:image/") for link in parser.links)
    assert not {"link", "iframe", "object", "base", "embed"} & set(parser.tags)
    assert not re.search(r"https?://|@import|url\(|fetch\(|import\(", text)
    return [word for word in parser.words if word]
