"""What passes the door, as which value, and the sentence that others get."""

from pathlib import Path

import numpy as np
import pytest

from mixdistill import arguments


@pytest.mark.parametrize("value", [True, 2.0, "2", None, float("nan"), 0, [1]])
def test_a_whole_number_is_neither_a_flag_nor_a_float_nor_too_small(value):
    with pytest.raises(ValueError, match=r"epochs is .*: it is a whole number, at least 1$"):
        arguments.whole("epochs", value)


@pytest.mark.parametrize(
    "value", [True, "1e-3", None, float("nan"), float("inf"), np.float32("inf"), 10**400, 0, -1, 1j]
)
def test_a_number_is_finite_and_within_its_bounds(value):
    with pytest.raises(ValueError, match=r"lr is .*: it is a finite number, above 0$"):
        arguments.number("lr", value, above=0)


def test_numpy_numbers_and_paths_become_plain_values():
    assert type(arguments.whole("n", np.int64(3))) is int
    assert type(arguments.number("lr", np.float32(0.5), above=0)) is float
    assert arguments.text("student", Path("a/b")) == "a/b"


def test_none_passes_where_it_is_allowed():
    assert arguments.whole("n", None, optional=True) is None
    with pytest.raises(ValueError, match="or None"):
        arguments.whole("n", 0, optional=True)


@pytest.mark.parametrize("value", ["", " \n", 3, None, b"x", "\ud800"])
def test_a_text_is_not_blank_and_can_be_written(value):
    with pytest.raises(ValueError, match="student is "):
        arguments.text("student", value)


def test_a_choice_names_what_is_allowed():
    with pytest.raises(ValueError, match=r"too_long is \['drop'\]: use one of error, drop"):
        arguments.choice("too_long", ["drop"], ("error", "drop"))
