"""Links between the pages of the repository lead somewhere, anchors too."""

import re

import pytest

from support.layout import ROOT

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "third_party/*.md", "research/**/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)


def anchors(page):
    """GitHub's anchors of the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.*)", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings)
    return {text.replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_there_are_pages():
    assert len(PAGES) > 15
