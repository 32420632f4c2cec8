"""What tests look at in a page."""

from __future__ import annotations

from lxml import html


def shape(page: str) -> list[str]:
    """The elements in order, with the names of their attributes."""
    return [
        f"{node.tag} {sorted(node.attrib)}"
        for node in html.document_fromstring(page).iter()
        if isinstance(node.tag, str)
    ]
