"""Text from flows and servers, made safe for the places in which people read it."""

from __future__ import annotations

import re
from decimal import Decimal

from noukai_core import one_line

# What begins code, emphasis, links, images, HTML, entities, tables or strikethrough in Markdown.
_MARKDOWN = re.compile(r"[\\`*\[\]<>&|~]|(?<![^\W_])_|_(?![^\W_])|^(?:[#=+:-]|\d+[.)])")


def markdown(text: str, limit: int = 500) -> str:
    """Return text, in one line and cut at a limit, that Markdown shows as it is."""
    return _MARKDOWN.sub(
        lambda found: "".join(f"\\{c}" if not c.isalnum() else c for c in found[0]), one_line(text, limit)
    )


def markdown_link(text: str, url: str | None) -> str:
    """Return a Markdown link; without an address, the text alone."""
    return f"[{markdown(text)}]({url})" if url else markdown(text)


def dollars(amount: Decimal) -> str:
    """Return an amount of money: cents, or as many digits as a smaller amount needs."""
    if amount == 0 or amount >= Decimal("0.1"):
        return f"${amount:.2f}"
    return f"${amount.normalize():f}" if amount >= Decimal("0.000001") else "under $0.000001"
