"""The deck is made of the committed notebooks, works without a network, and asks before it answers."""

import re

import nbformat
import pytest
from conftest import REPO

from docs.slides import deck
from mixdistill.study.reproduce import NOTEBOOKS


@pytest.fixture(scope="module")
def html() -> str:
    return deck()


def test_the_deck_loads_nothing_from_the_web(html):
    loaded = re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']([^"']{1,80})""", html)
    assert "reveal.js/dist/reveal.js" in loaded
    assert not [address for address in loaded if address.startswith(("http", "//"))]
    assert "require(" not in html


def test_the_deck_holds_the_figures_and_only_the_code_that_is_its_point(html):
    assert html.count("data:image/png;base64,") >= 8
    assert "finetune" in html
    assert "check_parameters(globals()" not in html
    assert "Solution of" not in html


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_says_what_it_is_on_a_slide_and_no_slide_both_asks_and_answers(name):
    slides: list[list[str]] = [[]]
    for cell in nbformat.read(REPO / "notebooks" / f"{name}.ipynb", 4).cells:
        kind = cell.metadata["slideshow"]["slide_type"]
        if kind in ("slide", "subslide"):
            slides.append([])
        if kind != "skip":
            images = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
            slides[-1] += ["asks"] if re.search("^## Predict", cell.source) else ["answers"] if images else []
    assert any(slides)
    assert not [slide for slide in slides if {"asks", "answers"} <= set(slide)]
