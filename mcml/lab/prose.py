"""A notebook's Markdown as HTML of one page: formulas as MathML, links that work from there."""

# ruff: noqa: D102  (methods that mistune calls)

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from mcml.base.files import repo_root


def slug(text: str) -> str:
    """Return what stands for a heading in an address."""
    return re.sub(r"\W+", "-", re.sub("<[^>]+>", "", text)).strip("-").lower()


class Prose(IPythonRenderer):
    """Renders the Markdown of one notebook; mentions of notebooks, figures and tables become links.

    Args:
        notebook: its stem, before every heading's id.
        folder: where the page lies.
        notebooks: the stems of all that are on the page.
        places: ids on the page by what the text calls them, as ``Figure 5.1`` or a table's name.
    """

    def __init__(
        self, notebook: str, folder: Path, notebooks: Collection[str], places: Mapping[str, str]
    ) -> None:
        super().__init__(escape=False)
        self.notebook, self.folder, self.notebooks = notebook, folder, notebooks
        self.places = {f"Notebook {name.partition('_')[0]}": name for name in notebooks}
        self.places |= dict(zip(notebooks, notebooks, strict=True)) | dict(places)
        self.headings: list[tuple[str, str]] = []  # id and text, the title first

    def html(self, source: str) -> Markup:
        """Render Markdown."""
        return Markup(MarkdownWithMath(self).render(source))

    def line(self, source: str) -> Markup:
        """Render a line, without a paragraph around it."""
        return Markup(self.html(source).strip().removeprefix("<p>").removesuffix("</p>"))

    def target(self, url: str) -> str:
        """Return where a notebook's link leads: into the page, to a file of the repository, or elsewhere."""
        path, _, place = url.partition("#")
        name = Path(path).stem if path else self.notebook
        if re.match("[a-z]+:", url):
            return url
        if not path or name in self.notebooks:
            return f"#{name}" + f"-{slug(place)}" * bool(place)
        return os.path.relpath(repo_root() / "notebooks" / path, self.folder) + f"#{place}" * bool(place)

    def heading(self, text: str, level: int, **_: Any) -> str:
        name = f"{self.notebook}-{slug(text)}" if self.headings else self.notebook  # a title is its section's
        self.headings.append((name, text := re.sub("</?a[^>]*>", "", text)))
        return f"<h{level + 1}{f' id={name!r}' * (len(self.headings) > 1)}>{text}</h{level + 1}>\n"

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(re.sub("</?a[^>]*>", "", text), self.target(url), title)

    def table(self, text: str) -> str:
        return f'<div class="scroll prose"><table>{text}</table></div>\n'

    def inline_math(self, body: str) -> str:
        return convert(body)

    def block_math(self, body: str) -> str:
        return convert(body, display="block")

    def codespan(self, text: str) -> str:
        return self._linked(text, super().codespan(text))

    def text(self, text: str) -> str:
        mention = r"\b(Figure|[Nn]otebook)s? \d+b?(?:\.\d+)?"
        return re.sub(mention, lambda m: self._linked(m[0].capitalize(), m[0]), super().text(text))

    def _linked(self, name: str, html: str) -> str:
        to = self.places.get(re.sub("^(Figure|Notebook)s ", r"\1 ", name))
        return f'<a href="#{to}">{html}</a>' if to else html
