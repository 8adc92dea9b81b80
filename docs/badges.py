"""Badges that open the notebooks on Colab and Binder, for the copy of the repo that `origin` names: `make badges`.

They need a public address, which is each publisher's own; so README holds none until this has run.
"""

import re
import subprocess

from mixdistill.runs import REPO

GITHUB = re.compile(r"(?:\w+://)?(?:[^@/]+@)?(?:www\.)?github\.com[:/](\w[\w-]*/\w[\w.-]*?)(?:\.git)?/?", re.IGNORECASE)


def with_badges(page: str, origin: str) -> str:
    """README with the two badges between their marks.

    Raises ValueError if `origin` is no repository on GitHub, from which both services read, or the marks are missing.
    """
    found = GITHUB.fullmatch(origin)
    if not found:
        shown = re.sub(r"[^@/]+@", "", origin)  # a token may stand there
        way = f"git remote {'set-url' if origin else 'add'} origin https://github.com/..."
        raise ValueError(f"origin is {shown!r}: publish on GitHub, then {way}")
    before, mark, rest = page.partition("<!-- badges -->")
    _, end, after = rest.partition("<!-- /badges -->")
    if not (mark and end):
        raise ValueError("README lacks the marks <!-- badges --> and <!-- /badges -->: put them below its title")
    repo, tour = found[1], "notebooks/00_tour.ipynb"
    colab = f"https://colab.research.google.com/github/{repo}/blob/main/{tour}"
    binder = f"https://mybinder.org/v2/gh/{repo}/main?urlpath=lab/tree/{tour}"
    return (
        f"{before}{mark}\n"
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})\n"
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})\n"
        f"{end}{after}"
    )


def main() -> None:
    told = subprocess.run(["git", "remote", "get-url", "origin"], cwd=REPO, capture_output=True, text=True)
    try:
        page = with_badges((REPO / "README.md").read_text(), told.stdout.strip())
    except ValueError as error:
        raise SystemExit(f"badges: {error}") from None
    (REPO / "README.md").write_text(page)
    print("README.md has its badges: commit it")


if __name__ == "__main__":
    main()
