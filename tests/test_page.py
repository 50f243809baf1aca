"""The HTML page against what a browser and a reader need of it."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from perturblab.report.page import Figure, Page, Section, html, write_page
from perturblab.report.tables import Table
from perturblab.terminal import UserError

VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}


def png(width: int = 3, height: int = 2) -> bytes:
    out = io.BytesIO()
    Image.new("L", (width, height), 7).save(out, format="PNG")
    return out.getvalue()


class Reader(HTMLParser):
    """The elements of a page with their attributes and text; fails where a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[int] = []
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open, "a tag is never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        if tag not in VOID:
            self.open.append(len(self.elements))
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for i in self.open:
            self.elements[i][2].append(data)

    def all(self, tag: str, **having: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of every such element; ``id_`` and ``class_`` for what Python reserves."""
        wanted = {name.rstrip("_"): value for name, value in having.items()}
        return [
            (attrs, "".join(text).strip())
            for name, attrs, text in self.elements
            if name == tag and wanted.items() <= attrs.items()
        ]

    def texts(self, tag: str, **having: str) -> list[str]:
        return [text for _, text in self.all(tag, **having)]


TABLE = Table(
    "Accuracy of `vgg11`",
    ("arm", "n", "accuracy (%)", "remark"),
    (("masked", "5", "91.20", "-"), ("baseline", "5", "90.88", "one of the seeds diverged and is left out")),
    ("A note on `n`.",),
    text=(0, 3),
)
PAGE = Page(
    "Study `correction` & its answer",
    "What <b>we</b> asked.",
    (
        Section(
            "Does it work?",
            "PASS: by 3 points.",
            ("First.", "Second."),
            (TABLE,),
            (Figure(png(), "Over epochs"),),
        ),
        Section("Is it sure?", "UNDECIDED. Too few seeds.", figures=(Figure(png(90, 30), "B", "a curve"),)),
        Section("Is it sound?", "FAIL - it is not."),
        Section("How", "Passing remarks are no verdict.", ("Run `perturblab correction train --seed 3`.",)),
    ),
    "Made of 12 runs.",
)


def section(heading: str, **parts: object) -> Page:
    return Page("T", "L", (Section(heading, **parts),))  # type: ignore[arg-type]


def test_the_page_is_balanced_html_with_everything_in_it_in_order() -> None:
    text = html(PAGE)
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    page = Reader(text)
    for tag in ("html", "head", "title", "style", "body", "h1", "main", "footer"):
        assert len(page.all(tag)) == 1
    assert page.texts("h1") == ["Study correction & its answer"]
    assert page.texts("p", class_="lead") == ["What <b>we</b> asked."]
    assert page.texts("h2") == ["Does it work?", "Is it sure?", "Is it sound?", "How"]
    assert page.texts("footer") == ["Made of 12 runs."]
    first = page.texts("section", id_="section-1")[0]
    parts = [
        "Does it work?",
        "by 3 points.",
        "First.",
        "Second.",
        "Accuracy",
        "91.20",
        "A note",
        "Over epochs",
    ]
    assert [first.index(part) for part in parts] == sorted(first.index(part) for part in parts)


@pytest.mark.parametrize(
    "page",
    [Page("", "", ()), section("H"), section("H", answer="PASS")],
    ids=["empty", "bare", "verdict only"],
)
def test_a_page_with_little_on_it_is_balanced_too(page: Page) -> None:
    assert not Reader(html(page)).all("nav")  # nothing to choose from


def test_nothing_is_fetched_and_nothing_runs() -> None:
    text = html(PAGE)
    page = Reader(text)
    for tag in ("script", "link", "iframe", "object", "base", "form"):
        assert not page.all(tag)
    for _, attrs, _ in page.elements:
        assert not [name for name in attrs if name.startswith("on")]
        assert str(attrs.get("src", "data:image/png;base64,")).startswith("data:image/png;base64,")
        assert str(attrs.get("href", "#")).startswith("#")
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = [attrs for attrs, _ in page.all("meta") if "http-equiv" in attrs]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


HOSTILE = "</title></style></p><script>alert(1)</script> \"'><img src=x onerror=a> & `a<b`"


def test_text_is_text_wherever_it_stands() -> None:
    table = Table(HOSTILE, (HOSTILE,), ((HOSTILE,),), (HOSTILE,))
    one = Section(
        HOSTILE, HOSTILE, (HOSTILE,), (table,), (Figure(png(), HOSTILE), Figure(png(), "C", HOSTILE))
    )
    page = Reader(html(Page(HOSTILE, HOSTILE, (one, one), HOSTILE)))
    assert not page.all("script")
    assert len(page.all("img")) == 4
    shown = HOSTILE.replace("`", "")
    for tag in ("title", "h1", "h2", "th", "td", "li"):
        assert set(page.texts(tag)) == {shown}
    assert page.texts("p", class_="answer") == [shown] * 2
    assert {attrs["alt"] for attrs, _ in page.all("img")} == {shown}


def test_backticks_set_code_and_a_single_one_stays() -> None:
    page = Reader(html(section("H", paragraphs=("Set `lr` to `0.1`, not a ` alone.",))))
    assert page.texts("code") == ["lr", "0.1"]
    assert "Set lr to 0.1, not a ` alone." in page.texts("p")


def test_flags_in_code_stay_whole_at_the_end_of_a_line() -> None:
    page = Reader(html(PAGE))
    assert "perturblab correction train --seed 3" in page.texts("code")
    assert "--seed" in page.texts("span")


def test_a_verdict_is_a_badge_in_its_section_and_in_the_contents() -> None:
    page = Reader(html(PAGE))
    verdicts = {"pass": "PASS", "undecided": "UNDECIDED", "fail": "FAIL"}
    for kind, word in verdicts.items():
        assert page.texts("span", class_=f"badge {kind}") == [word] * 2
    assert page.texts("p", class_="answer") == [
        "PASS by 3 points.",
        "UNDECIDED Too few seeds.",
        "FAIL it is not.",
        "Passing remarks are no verdict.",
    ]
    nav = page.texts("nav")[0].split("\n")
    assert nav == ["Does it work? PASS", "Is it sure? UNDECIDED", "Is it sound? FAIL", "How"]


@pytest.mark.parametrize("answer", ["PASSED all tests.", "They PASS.", "FAILURE", "pass"])
def test_other_words_are_no_verdict(answer: str) -> None:
    page = Reader(html(section("H", answer=answer)))
    assert not page.all("span")
    assert page.texts("p", class_="answer") == [answer]


def test_the_contents_lead_to_every_section() -> None:
    same = Section("Equal headings")
    page = Reader(html(Page("T", "L", (same, same, same))))
    targets = [attrs["id"] for attrs, _ in page.all("section")]
    assert [attrs["href"] for attrs, _ in page.all("a")] == [f"#{name}" for name in targets]
    assert len(set(targets)) == 3


def test_tables_keep_numbers_right_texts_left_and_their_notes() -> None:
    page = Reader(html(PAGE))
    assert [attrs["class"] for attrs, _ in page.all("th")] == ["text", "number", "number", "long"]
    cells = [(attrs["class"], text) for attrs, text in page.all("td")]
    kinds = ["text", "number", "number", "long"]
    assert cells == [pair for row in TABLE.rows for pair in zip(kinds, row, strict=True)]
    assert page.texts("ul", class_="notes") == ["A note on n."]
    assert page.texts("figcaption", class_="title") == ["Accuracy of vgg11"]


def test_a_wide_table_scrolls_in_its_own_box_which_the_keyboard_reaches() -> None:
    text = html(PAGE)
    box = '<div class="scroll" role="region" tabindex="0" aria-label="Accuracy of vgg11">\n<table>'
    assert box in text
    assert ".scroll { overflow-x: auto; }" in text


def test_pictures_are_inside_with_their_size_and_words() -> None:
    page = Reader(html(PAGE))
    (small, _), (wide, _) = page.all("img")
    assert (small["width"], small["height"], small["alt"]) == ("3", "2", "Over epochs")
    assert (wide["width"], wide["height"], wide["alt"]) == ("90", "30", "a curve")
    start = "data:image/png;base64,"
    assert str(small["src"]).startswith(start)
    assert base64.b64decode(str(small["src"]).removeprefix(start)) == png()
    assert [attrs["class"] for attrs, _ in page.all("div") if "card" in str(attrs["class"])] == [
        "card scroll",
        "card scroll wide",
    ]


def test_what_is_no_png_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a PNG"):
        html(section("H", figures=(Figure(b"<svg/>", "C"),)))


def test_a_table_without_rows_is_a_table() -> None:
    page = Reader(html(section("H", tables=(Table("T", ("a", "b"), ()),))))
    assert [attrs["class"] for attrs, _ in page.all("th")] == ["text", "number"]


def test_equal_pages_give_equal_files(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_page(PAGE, tmp_path / "new" / name)
    first, second = ((tmp_path / "new" / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second == html(PAGE).encode()


def test_letters_of_all_kinds_are_written(tmp_path: Path) -> None:
    write_page(section("Größe ± λ 中"), tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert Reader(text).texts("h2") == ["Größe ± λ 中"]
    assert '<meta charset="utf-8">' in text[:200]


def test_a_folder_that_is_a_file_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_page(PAGE, tmp_path / "taken" / "p.html")
