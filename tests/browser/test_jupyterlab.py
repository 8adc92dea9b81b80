"""The notebooks in JupyterLab, in a real browser, as a reader runs them: `make test-browser`.

A headless Chromium opens the lab, runs all cells from its menu and looks at what came out. Screenshots go to
`runs/browser/`, or `$MIXDISTILL_SCREENSHOTS`.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from conftest import REPO

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[test]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")

SCREENSHOTS = Path(os.environ.get("MIXDISTILL_SCREENSHOTS", REPO / "runs" / "browser"))
NARROW = 760  # pixels, of a window beside another one
RUN = "03_mix_distillation"  # figures, tables and a slider; the others are executed without a browser elsewhere
READ = ("02_learnability_gap", "04_mechanism")  # as they are committed
SMALLEST = {'SCALE: str = "pocket"': 'SCALE: str = "smoke"', "SEEDS: int = 0": "SEEDS: int = 1"}
SETTINGS = {"@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"}}  # every cell is in the page
# What a reader sees of the outputs, whose right edge the panel has.
SEEN = """() => {
    const all = (selector) => [...document.querySelectorAll('.jp-OutputArea ' + selector)];
    const right = (element) => Math.ceil(element.getBoundingClientRect().right);
    return {
        panel: right(document.querySelector('.jp-NotebookPanel')),
        figures: all('img').map((image) => [image.naturalWidth / image.clientWidth, right(image)]),
        verdicts: all('td').filter((cell) => /(above 0|below 0|undecided)/.test(cell.textContent)).map(right),
        texts: all('td div').map((text) => getComputedStyle(text).textAlign),
        folded: all('details').map((details) => !details.open),
    };
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address, token and root of a JupyterLab over a copy of the notebooks, those to run at the smallest scale."""
    root = tmp_path_factory.mktemp("root")
    (root / "notebooks").mkdir()
    notebook = nbformat.read(REPO / "notebooks" / f"{RUN}.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for published, small in SMALLEST.items():
        parameters.source = parameters.source.replace(published, small)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, root / "notebooks" / f"run_{RUN}.ipynb")
    for path in (REPO / "notebooks").glob("*.ipynb"):
        shutil.copy(path, root / "notebooks")
    for name in ("docs", "figures", "README.md"):
        (root / name).symlink_to(REPO / name)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    token, home = secrets.token_hex(8), root / ".home"
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    for name, values in SETTINGS.items():
        path = home / "JUPYTERLAB_SETTINGS_DIR" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    environment = os.environ | {name: str(home / name) for name in folders} | {"MIXDISTILL_RUNS": str(root / "runs")}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    options = {
        "ServerApp.root_dir": root,
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": token,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    log = (root / "lab.log").open("w")
    server = subprocess.Popen(command, env=environment, cwd=root, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    while True:
        if server.poll() is not None:
            pytest.fail((root / "lab.log").read_text()[-2000:])
        with suppress(OSError):
            urllib.request.urlopen(f"{address}/api?token={token}").close()
            break
        time.sleep(0.2)
    yield address, token, root
    server.terminate()
    server.wait()
    log.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # Chromium refuses its sandbox to root, as in a container; what it opens are our own pages.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, lab):
    """A window of a fresh profile, as someone has who opens the lab for the first time."""
    context = browser.new_context(viewport={"width": 1280, "height": 1600}, device_scale_factor=2)
    page = context.new_page()
    page.set_default_timeout(0)  # a loaded machine is slow, not wrong
    yield page
    context.close()


def open_notebook(page, lab, name: str) -> None:
    address, token, _ = lab
    page.goto(f"{address}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?token={token}&reset")
    page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for()
    # Without a kernel, "Run All Cells" asks for one.
    while kernel_state(lab, name) != "idle":
        page.wait_for_timeout(200)


def kernel_state(lab, name: str) -> str | None:
    address, token, _ = lab
    with urllib.request.urlopen(f"{address}/api/sessions?token={token}") as answer:
        found = [session for session in json.load(answer) if session["path"].endswith(f"/{name}.ipynb")]
    return found[0]["kernel"]["execution_state"] if found else None


def test_a_notebook_runs_from_the_menu_without_an_error(page, lab):
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    open_notebook(page, lab, f"run_{RUN}")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    path = lab[2] / "notebooks" / f"run_{RUN}.ipynb"
    while not executed(path):
        page.keyboard.press("Control+s")
        page.wait_for_timeout(2000)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{RUN}.png")
    outputs = outputs_of(path)
    assert figures_in(outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    move_the_slider(page)
    assert not complaints


def move_the_slider(page) -> None:
    figure, handle = page.locator(".widget-interact img"), page.locator(".widget-slider .noUi-handle")
    before = figure.get_attribute("src")
    handle.press("ArrowRight")
    while figure.count() != 1 or figure.get_attribute("src") == before:
        page.wait_for_timeout(200)


@pytest.mark.parametrize("name", READ)
def test_a_fresh_clone_shows_what_was_committed_in_a_narrow_window(name, page, lab):
    page.set_viewport_size({"width": NARROW, "height": 1400})
    open_notebook(page, lab, name)
    outputs = outputs_of(REPO / "notebooks" / f"{name}.ipynb")
    n_solutions = sum("<details>" in output.get("data", {}).get("text/html", "") for output in outputs)
    while True:
        seen = page.evaluate(SEEN)
        if len(seen["figures"]) == len(figures_in(outputs)) and len(seen["folded"]) == n_solutions:
            break
        page.wait_for_timeout(500)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}_{NARROW}.png")
    for ratio, right in seen["figures"]:
        assert ratio >= 2, "soft on a screen of high resolution"
        assert right <= seen["panel"]
    assert seen["verdicts"]
    assert max(seen["verdicts"]) <= seen["panel"]
    assert set(seen["texts"]) <= {"left"}  # running text, also where styles of a table are stripped
    assert all(seen["folded"])


def test_a_link_in_a_notebook_opens_the_page(page, lab):
    open_notebook(page, lab, "02_learnability_gap")
    page.get_by_role("link", name="docs/real-models.md").first.click()
    page.locator(".lm-TabBar-tabLabel", has_text="real-models.md").first.wait_for()


def outputs_of(path: Path) -> list:
    return [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]


def figures_in(outputs: list) -> list:
    return [output for output in outputs if "image/png" in output.get("data", {})]


def executed(path: Path) -> bool:
    """Whether every code cell of the notebook on disk was run to its end, or one failed."""
    try:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    except json.JSONDecodeError:  # it is being written
        return False
    failed = any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    return failed or all(cell["execution_count"] for cell in cells)
