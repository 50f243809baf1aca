"""A report as one HTML file: pictures and style inside, no scripts, nothing fetched. For screens, phones and paper."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from perturblab.files import write_atomic
from perturblab.report.tables import Table

VERDICTS = ("PASS", "FAIL", "UNDECIDED")
WIDE = 1.8  # width / height above which a picture has several panels: on a phone it scrolls, else it is too small
LONG = 24  # letters of a text from which its column keeps room for a few words per line


@dataclass(frozen=True)
class Figure:
    """A PNG, a caption below it, and ``alt``: what it shows, for those who cannot see it; the caption if empty."""

    png: bytes
    caption: str
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """A heading; its ``answer`` in a sentence or two, in bold; then the paragraphs, tables and figures.

    A first word of the answer that is one of ``VERDICTS`` becomes a badge, there and in the table of contents.
    """

    heading: str
    answer: str = ""
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Page:
    """Plain text throughout: mark-up in it is shown as it stands, except that `backticks` set code."""

    title: str
    lead: str
    sections: tuple[Section, ...]
    footer: str = ""


def html(page: Page) -> str:
    """The page as HTML 5; equal pages give equal text. ValueError if a figure is not a PNG."""
    return _TEMPLATE.render(page=page)


def write_page(page: Page, path: Path) -> None:
    """Write ``html``, whole or not at all. UserError when the disk is full or the folder is not writable."""
    write_atomic(path, html(page).encode())


def _code(text: str) -> Markup:
    """Escaped, with what stands in backticks as code.

    Words with hyphens there get a span that keeps them whole: browsers would break ``--seeds`` after its ``--``.
    """

    def code(found: re.Match[str]) -> str:
        return "<code>" + re.sub(r"\S*-\S*", r"<span>\g<0></span>", found[1]) + "</code>"

    return Markup(re.sub(r"`([^`]+)`", code, str(escape(text))))


def _plain(text: str) -> str:
    """For places where HTML takes no mark-up."""
    return re.sub(r"`([^`]+)`", r"\1", text)


def _verdict(answer: str) -> str:
    """The verdict that an answer begins with, or nothing."""
    found = re.match(rf"({'|'.join(VERDICTS)})\b", answer)
    return found[1] if found else ""


def _reason(answer: str) -> str:
    """An answer without its verdict and what separates the two."""
    return re.sub(r"^[\s:.,;–—-]+", "", answer.removeprefix(_verdict(answer))) if _verdict(answer) else answer


def _size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels: told, a browser keeps the room before it has decoded the picture."""
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("a figure of a page must be a PNG")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _kinds(table: Table) -> list[str]:
    """The style of each column: ``number``, ``text``, or ``long`` for texts that would else be squeezed on a phone."""
    longest = [max((len(row[i]) for row in table.rows), default=0) for i in range(len(table.columns))]
    return [
        "number" if i not in table.text else "long" if n > LONG else "text" for i, n in enumerate(longest)
    ]


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2125; --soft: #565d66; --paper: #fff; --line: #d5d9de;
  --shade: #f3f5f7; --shadow: #9aa2ab80; --link: #0b5cad; --pass: #146c43; --fail: #b02a37; --undecided: #5c636a; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #a4acb5; --paper: #15181b; --line: #3a4047; --shade: #22272c;
    --shadow: #6d7680a0; --link: #7db5f0; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 60rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word; }
h1 { margin: 0 0 .5rem; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 0 0 .5rem; font-size: 1.3rem; line-height: 1.3; }
p { margin: .6rem 0; }
h1, h2, p, nav, .notes, figcaption { max-width: 46rem; }
a { color: var(--link); }
code { padding: .05em .3em; border-radius: 3px; background: var(--shade); font: .9em ui-monospace, Menlo, Consolas,
  "DejaVu Sans Mono", monospace; }
code span { display: inline-block; max-width: 100%; }
.lead { font-size: 1.1rem; }
nav { margin: 1.2rem 0; padding: .7rem 1rem; border: 1px solid var(--line); border-radius: 6px; }
nav ol { margin: 0; padding-left: 1.4rem; }
section { margin-top: 2rem; padding-top: 1.3rem; border-top: 1px solid var(--line); }
.answer { font-weight: 600; }
.badge { margin-right: .35em; padding: .12em .5em; border-radius: 4px; color: #fff; font-size: .78em;
  font-weight: 700; letter-spacing: .03em; vertical-align: .08em; }
.badge.pass { background: var(--pass); } .badge.fail { background: var(--fail); }
.badge.undecided { background: var(--undecided); }
nav .badge { margin: 0 0 0 .35em; }
figure { margin: 1.3rem 0; }
figcaption { margin: .4rem 0; color: var(--soft); font-size: .92rem; }
.title { color: var(--ink); font-weight: 600; }
.scroll { overflow-x: auto; }
.table .scroll { background: /* a shadow at the side where there is more; the paper scrolls over it */
  linear-gradient(to right, var(--paper) 40%, transparent) left / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--shadow), transparent) left / 1rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shadow), transparent) right / 1rem 100% no-repeat scroll; }
.card { display: inline-block; max-width: min(100%, 46rem); padding: .5rem; border: 1px solid var(--line);
  border-radius: 6px; background: #fff; vertical-align: top; }
.card img { display: block; max-width: 100%; height: auto; }
.wide { max-width: 100%; } .wide img { min-width: min(38rem, var(--width)); }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; line-height: 1.35; }
th, td { padding: .32rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { border-bottom-color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { padding-left: .2rem; }
.number { text-align: right; }
td.number, td.text { white-space: nowrap; }
.long { min-width: 14rem; }
.notes { margin: .4rem 0; padding: 0; color: var(--soft); font-size: .88rem; list-style: none; }
footer { margin-top: 2.5rem; padding-top: .8rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .88rem; }
@media print {
  html { font-size: 10pt; }
  body { max-width: none; padding: 0; }
  .scroll, .table .scroll { overflow: visible; background: none; } .card { padding: 0; border: 0; }
  .card img, .wide img { min-width: 0; max-height: 10cm; width: auto; }
  .long { min-width: 0; } td.text { white-space: normal; }
  h2, .title, .answer { break-after: avoid; } figure, tr, nav { break-inside: avoid; }
  thead { display: table-header-group; }
  .badge { border: 1px solid currentcolor; color: #000; background: none !important; }
}
"""

_PAGE = """\
{% macro badge(word) %}
<span class="badge {{ word|lower }}">{{ word }}</span>
{%- endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ page.title|plain }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ page.title|code }}</h1>
<p class="lead">{{ page.lead|code }}</p>
</header>
{% if page.sections|length > 1 %}
<nav aria-label="Contents">
<ol>
{% for section in page.sections %}
<li><a href="#section-{{ loop.index }}">{{ section.heading|code }}</a>
{%- if section.answer|verdict %} {{ badge(section.answer|verdict) }}{% endif %}</li>
{% endfor %}
</ol>
</nav>
{% endif %}
<main>
{% for section in page.sections %}
<section id="section-{{ loop.index }}">
<h2>{{ section.heading|code }}</h2>
{% if section.answer %}
<p class="answer">
{%- if section.answer|verdict %}{{ badge(section.answer|verdict) }} {% endif %}
{{- section.answer|reason|code }}</p>
{% endif %}
{% for paragraph in section.paragraphs %}
<p>{{ paragraph|code }}</p>
{% endfor %}
{% for table in section.tables %}
{% set kinds = table|kinds %}
<figure class="table">
<figcaption class="title">{{ table.title|code }}</figcaption>
<div class="scroll" role="region" tabindex="0" aria-label="{{ table.title|plain }}">
<table>
<thead>
<tr>
{% for name in table.columns %}
<th scope="col" class="{{ kinds[loop.index0] }}">{{ name|code }}</th>
{% endfor %}
</tr>
</thead>
<tbody>
{% for row in table.rows %}
<tr>
{% for cell in row %}
<td class="{{ kinds[loop.index0] }}">{{ cell|code }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if table.notes %}
<ul class="notes">
{% for note in table.notes %}
<li>{{ note|code }}</li>
{% endfor %}
</ul>
{% endif %}
</figure>
{% endfor %}
{% for figure in section.figures %}
{% set width, height = figure.png|size %}
<figure>
{% set fit = " wide" if width > wide * height else "" %}
<div class="card scroll{{ fit }}" role="region" tabindex="0" aria-label="Figure {{ loop.index }}">
<img src="{{ figure.png|data_uri }}" style="--width: {{ width }}px"
  width="{{ width }}" height="{{ height }}" alt="{{ (figure.alt or figure.caption)|plain }}">
</div>
<figcaption>{{ figure.caption|code }}</figcaption>
</figure>
{% endfor %}
</section>
{% endfor %}
</main>
{% if page.footer %}
<footer><p>{{ page.footer|code }}</p></footer>
{% endif %}
</body>
</html>
"""

_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
_ENVIRONMENT.filters |= {
    filter.__name__.lstrip("_"): filter
    for filter in (_code, _plain, _verdict, _reason, _size, _kinds, _data_uri)
}
_ENVIRONMENT.globals |= {"style": Markup(_STYLE), "wide": WIDE}
_TEMPLATE = _ENVIRONMENT.from_string(_PAGE)
