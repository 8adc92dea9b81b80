"""Notebooks in IPython, without a kernel, which takes many seconds to import the package."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import CapturedIO, capture_output
from matplotlib_inline.backend_inline import configure_inline_support
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
INLINE = "module://matplotlib_inline.backend_inline"  # figures as in a kernel


@contextmanager
def ipython() -> Iterator[InteractiveShell]:
    made = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}), user_module=ModuleType("x"))
    plt.switch_backend(INLINE)
    plt.ion()
    configure_inline_support(made, INLINE)
    yield made
    plt.ioff()
    plt.switch_backend("agg")
    InteractiveShell.clear_instance()


def run_in(shell: InteractiveShell, name: str, parameters: Mapping[str, object]) -> list[CapturedIO]:
    """What each cell of a notebook with these parameters writes and shows. Raises what a cell raises."""
    notebook = parameterize_notebook(load_notebook_node(str(NOTEBOOKS / f"{name}.ipynb")), parameters)
    shell.reset()
    seen = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            with capture_output() as written:
                result = shell.run_cell(cell.source, store_history=True)
            result.raise_error()
            seen.append(written)
    return seen
