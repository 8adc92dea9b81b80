import pytest
from conftest import REPO

from docs.badges import with_badges

PAGE = "# mixdistill\n\n<!-- badges -->\n<!-- /badges -->\n\nText.\n"


@pytest.mark.parametrize(
    "origin",
    [
        "https://github.com/some-one/mix.distill",
        "https://github.com/some-one/mix.distill.git",
        "git@github.com:some-one/mix.distill.git",
        "ssh://git@github.com/some-one/mix.distill",
        "https://me:token@github.com/some-one/mix.distill",
        "HTTPS://www.GitHub.com/some-one/mix.distill/",
    ],
)
def test_badges_open_the_tour_of_the_repository_that_origin_names(origin):
    page = with_badges(PAGE, origin)
    assert "(https://colab.research.google.com/github/some-one/mix.distill/blob/main/notebooks/00_tour.ipynb)" in page
    assert "(https://mybinder.org/v2/gh/some-one/mix.distill/main?urlpath=lab/tree/notebooks/00_tour.ipynb)" in page
    assert page.startswith("# mixdistill\n\n<!-- badges -->\n")
    assert page.endswith("<!-- /badges -->\n\nText.\n")
    assert with_badges(page, origin) == page


@pytest.mark.parametrize(
    "origin", ["", "/home/me/mixdistill", "https://me:token@example.org/a/b", "https://github.com/../.."]
)
def test_without_a_public_address_there_are_none(origin):
    with pytest.raises(ValueError, match=r"origin is .*: publish on GitHub") as error:
        with_badges(PAGE, origin)
    assert "token" not in str(error.value)


def test_the_readme_has_a_place_for_them():
    assert "github/a/b/blob/main" in with_badges((REPO / "README.md").read_text(), "https://github.com/a/b")
