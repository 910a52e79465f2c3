"""The Markdown pages: short, README one screen, each says for whom it is, and every relative link leads somewhere."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^( *)```.*?^\1```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def list_pages() -> list[str]:
    """The Markdown files of the project, relative to its root, but for templates and what git ignores."""
    command = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings in `text`: lower case, no punctuation, a hyphen for each space."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub(lambda code: code[0] if code[0].count("`") == 2 else "", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """The links of `page` to a file, or to a heading of a page, that does not exist."""
    broken = []
    for link in LINK.findall(CODE.sub("", page.read_text())):
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors_of(target.read_text()))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", list_pages())
def test_links_lead_somewhere(page):
    assert broken_links(ROOT / page) == []


def test_a_broken_link_is_noticed(tmp_path):
    (tmp_path / "other.md").write_text("# What `x.py` does, and what not\n\n```\n# no heading\n```\n")
    good = "[a](other.md) [b](other.md#what-xpy-does-and-what-not) [c](#here) [d](https://x.org/#y) `[e](none.md)`"
    bad = ["none.md", "other.md#no-heading", "#there"]
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n{good}\n" + "".join(f"![f]({link})\n" for link in bad))
    assert broken_links(page) == bad


WORD = re.compile(r"\S*\w\S*")


def count_words(page: str) -> int:
    """The words of a page, code among them. The bars of a table are none, nor are dashes; `wc -w` counts these too."""
    return len(WORD.findall((ROOT / page).read_text()))


def test_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def test_all_pages_together_are_short():
    """A page that says more says a fact that stands twice, or one that --help or a docstring has already."""
    words = {page: count_words(page) for page in list_pages()}
    assert sum(words.values()) <= 20_860, sorted(words.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("page", [page for page in list_pages() if page != "README.md"])
def test_the_first_paragraph_says_for_whom_a_page_is(page):
    title, paragraph = (ROOT / page).read_text().split("\n\n")[:2]
    assert title.startswith("# ") and paragraph.startswith("For whoever ")
