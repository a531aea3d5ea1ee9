"""Text that somebody else wrote, as a terminal or a page may show it.

A terminal acts on control signs, and a reader is misled by signs that turn the direction of a line
or are not seen at all: what a person reads must be what stands there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def printable(text: str) -> str:
    """A text on one line, every sign that is not seen as itself spelled out.

    >>> printable("visits\\x1b[2K\\nok\\u202e")
    'visits\\\\x1b[2K\\\\nok\\\\u202e'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """A text of several lines, each of them printable."""
    return "\n".join(map(printable, text.split("\n")))


def printable_content(content: Any) -> Any:
    """JSON's values, the texts among them printable line by line."""
    match content:
        case str():
            return printable_lines(content)
        case dict():
            return {printable_content(k): printable_content(v) for k, v in content.items()}
        case list() | tuple():
            return [printable_content(each) for each in content]
        case _:
            return content


#: Characters of a name in a file's name or a metric's.
LONGEST_SLUG = 80


def slug(text: str) -> str:
    """A text as a part of a file's name or a metric's: letters, digits, ``_``, ``.`` and ``-``.

    >>> slug("Müller & Söhne / Kfz")
    'Müller-Söhne-Kfz'
    """
    return re.sub(r"[^\w.]+", "-", text).strip("-.")[:LONGEST_SLUG] or "unnamed"


def slugs(texts: Iterable[str]) -> dict[str, str]:
    """A slug of its own for each text, in any case of its letters."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for text in dict.fromkeys(texts):
        name, number = slug(text), 1
        while name.lower() in taken:
            number += 1
            name = f"{slug(text)}-{number}"
        names[text] = name
        taken.add(name.lower())
    return names
