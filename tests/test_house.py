"""What holds the house together: who may import whom, and how large it may become."""

import ast
import re

import pytest
from conftest import REPO

PACKAGE = REPO / "mixdistill"
FILES = sorted(PACKAGE.rglob("*.py"))
CELLAR = {"runs", "files", "arguments"}  # everybody may use it
# From left to right, as data flows; `__init__` and `__main__` are the doors and may use all.
ROOMS = {
    "runs": set(),
    "files": set(),
    "arguments": set(),
    "data": set(),
    "finetuning": {"data"},
    "generation": {"data"},
    "grading": {"data"},
    "results": {"data", "finetuning", "generation", "grading"},
    "study": {"data", "finetuning", "generation", "grading", "results"},
}


def imports(path) -> set[str]:
    """Rooms, and top-level packages outside, that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {part[1] if part[0] == "mixdistill" else part[0] for part in parts if part != ["mixdistill"]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pattern_repeats_a_group_possessively(path):
    """Python before 3.11.5 (Debian 12 has 3.11.2) matches it wrongly: github.com/python/cpython/issues/106052."""
    assert not re.search(r"\)[*+?]\+|\(\?>", path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_data_flows_one_way(path):
    assert not imports(path) & {"pretraining", "benchmarks"}
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if not room.startswith("__"):
        assert imports(path) & ROOMS.keys() <= ROOMS[room] | CELLAR | {room}


def test_the_listing_is_short():
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 12, entries


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= 350
