"""One deck of slides from the notebooks of a first visit, for a class: `make slides` writes slides/index.html.

What a cell is on a slide stands in its metadata (`slideshow`, the right sidebar of JupyterLab). Code is shown only of
cells with the tag `slide-code`. reveal.js comes from a package, so that the deck works without a network.
"""

import importlib.util
import shutil
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter

from mixdistill.runs import REPO
from mixdistill.study.reproduce import NOTEBOOKS

FOLDER = REPO / "slides"  # beside notebooks/, so that their links hold


def deck() -> str:
    """The HTML of the deck; it expects reveal.js in a folder of this name beside it."""
    notebooks = [nbformat.read(REPO / "notebooks" / f"{name}.ipynb", as_version=4) for name in NOTEBOOKS]
    for name, notebook in zip(NOTEBOOKS, notebooks, strict=True):
        for cell in notebook.cells:
            cell.id = f"{name}-{cell.id}"
            hidden = cell.cell_type == "code" and "slide-code" not in cell.metadata.get("tags", [])
            cell.metadata["transient"] = {"remove_source": hidden}
    joined = nbformat.v4.new_notebook(cells=[cell for notebook in notebooks for cell in notebook.cells])
    joined.metadata = notebooks[0].metadata | {"title": "mixdistill"}
    exporter = SlidesExporter(
        template_name="slides",
        extra_template_basedirs=[str(REPO / "docs")],
        reveal_url_prefix="reveal.js",
        reveal_theme="white",  # its fonts come with it
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    return exporter.from_notebook_node(joined)[0]


def main() -> None:
    found = importlib.util.find_spec("sphinx_revealjs")  # a package that holds reveal.js; it is not imported
    if found is None:
        raise SystemExit("there is no reveal.js: run make slides, or pip install --no-deps sphinx-revealjs==3.2.1")
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(Path(found.origin).parent / "_static" / "revealjs" / "dist", FOLDER / "reveal.js" / "dist")
    (FOLDER / "index.html").write_text(deck())
    print(f"{FOLDER.relative_to(REPO)}/index.html: open it in a browser; for paper, append ?print-pdf to its address")


if __name__ == "__main__":
    main()
