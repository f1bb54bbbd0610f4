"""Links from a document to a folder of the checkout.

On a forge, such a link shows the files of the folder. On the site, the link leads to the page of
the folder's README.md or, if there is none, to a page that this extension generates from the files
of the folder. Links to single files need no extension: MyST copies the file into the site.
"""

from __future__ import annotations

import html
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.transforms.post_transforms import SphinxPostTransform

LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml"}


class FolderLinks(SphinxPostTransform):
    """Resolves links to folders before MyST searches for a page with the name of the folder."""

    default_priority = 8

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(pending_xref)):
            if node["reftype"] != "myst" or node["refdomain"] == "doc":
                continue
            here = posixpath.dirname(self.env.docname)
            folder = posixpath.normpath(posixpath.join(here, node["reftarget"]))
            if not Path(self.env.srcdir, folder).is_dir():
                continue
            page = f"{folder}/README"
            if page not in self.env.found_docs:
                page = f"{folder}/index"
                self.app.folders.add(folder)
            uri = self.app.builder.get_relative_uri(self.env.docname, page)
            node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


def folder_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Generates a page for each linked folder without a README.md."""
    assert isinstance(app.builder, StandaloneHTMLBuilder)
    for folder in sorted(app.folders):
        root = Path(app.srcdir, folder)
        files = shown(root.iterdir()) or shown(root.rglob("*"))
        parts = [f"<h1>{html.escape(folder)}</h1>"]
        for file in files:
            name = html.escape(file.relative_to(root).as_posix())
            code = app.builder.highlighter.highlight_block(file.read_text(), LANGUAGES[file.suffix])
            parts.append(f"<h2>{name}</h2>{code}")
        yield f"{folder}/index", {"title": folder, "body": "\n".join(parts)}, "page.html"


def shown(files: Iterable[Path]) -> list[Path]:
    """The files that the page of a folder shows: sources and settings."""
    return sorted(file for file in files if file.suffix in LANGUAGES)


def setup(app: Sphinx) -> dict[str, Any]:
    app.folders = set()
    app.add_post_transform(FolderLinks)
    app.connect("html-collect-pages", folder_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
