"""Checks at the door of every public function: what was given, what is allowed, before any work.

Each returns the value as plain Python (`numpy.int64(3)` becomes 3, `Path("a")` becomes "a"), so that the same value
makes the same run, and raises ValueError with one sentence that names argument, value and rule.
"""

import math
import numbers
import os
from collections.abc import Collection


def whole(name: str, value: object, low: int = 1, high: int | None = None, optional: bool = False) -> int | None:
    """An integer from `low` to `high`; with `optional` also None. True and 2.0 are none."""
    if value is None and optional:
        return None
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not good or value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} is {shown(value)}: it is a whole number, {bound}{_or_none(optional)}")
    return int(value)


def number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
    optional: bool = False,
) -> float | None:
    """A finite number with low <= value <= high and above < value < below; with `optional` also None."""
    if value is None and optional:
        return None
    good = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not (low <= value <= high and above < value < below):
        bounds = [f"at least {low:g}"] * (low > -math.inf) + [f"above {above:g}"] * (above > -math.inf)
        bounds += [f"at most {high:g}"] * (high < math.inf) + [f"below {below:g}"] * (below < math.inf)
        rule = ", ".join(["a finite number", *bounds])
        raise ValueError(f"{name} is {shown(value)}: it is {rule}{_or_none(optional)}")
    return float(value)


def flag(name: str, value: object, optional: bool = False) -> bool | None:
    """True or False; with `optional` also None."""
    if not (isinstance(value, bool) or (value is None and optional)):
        raise ValueError(f"{name} is {shown(value)}: it is True or False{_or_none(optional)}")
    return value


def choice(name: str, value: object, allowed: Collection[str], optional: bool = False) -> str | None:
    """One of the allowed words; with `optional` also None."""
    if value is None and optional:
        return None
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {shown(value)}: use one of {', '.join(allowed)}{_or_none(optional)}")
    return value


def text(name: str, value: object, optional: bool = False, empty: bool = False) -> str | None:
    """A text that UTF-8 can write, not blank unless `empty`; a Path becomes its text. With `optional` also None."""
    if value is None and optional:
        return None
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(value, str) or not (empty or value.strip()):
        raise ValueError(
            f"{name} is {shown(value)}: it is a text{'' if empty else ' that is not blank'}{_or_none(optional)}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is {shown(value)}: it is a text that UTF-8 can write") from error
    return value


def instance(name: str, value: object, wanted: type, optional: bool = False) -> object:
    """A value of one type, such as `LoRA`; with `optional` also None."""
    if not (isinstance(value, wanted) or (value is None and optional)):
        raise ValueError(f"{name} is {shown(value)}: it is a {wanted.__name__}{_or_none(optional)}")
    return value


def shown(value: object) -> str:
    """A value in one line of a message: a table or a long text only by its beginning."""
    written = " ".join(repr(value).split())
    return written if len(written) <= 100 else f"{written[:100]}..."


def _or_none(optional: bool) -> str:
    return ", or None" if optional else ""
