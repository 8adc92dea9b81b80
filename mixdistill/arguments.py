"""Checks at the door of every public function: what was given, what is allowed, before any work.

Each returns the value as plain Python (`numpy.int64(3)` becomes 3, `Path("a")` becomes "a"), so that the same value
makes the same run, and raises ValueError with one sentence that names argument, value and rule. With `optional` also
None passes.
"""

import math
import numbers
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar, overload

T = TypeVar("T")
# NUL, which a text has that was read in the wrong encoding, and half of a surrogate pair, which UTF-8 cannot write.
UNREADABLE = re.compile("[\0\ud800-\udfff]")


@overload
def whole(name: str, value: object, low: int = 1, high: int | None = None) -> int: ...
@overload
def whole(name: str, value: object, low: int = 1, high: int | None = None, *, optional: bool) -> int | None: ...
def whole(name: str, value: Any, low: int = 1, high: int | None = None, optional: bool = False) -> int | None:
    """An integer from `low` to `high`. True and 2.0 are none."""
    if value is None and optional:
        return None
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not good or value < low or (high is not None and value > high):
        most = "" if high is None else f", at most {high}"
        raise _refused(name, value, f"it is a whole number, at least {low}{most}", optional)
    return int(value)


def number(name: str, value: Any, *, low: float = -math.inf, above: float = -math.inf, high: float = math.inf) -> float:
    """A finite number with low <= value <= high and above < value."""
    good = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        converted = float(value) if good else math.nan
    except OverflowError:  # an integer above the largest float
        converted = math.inf
    if not (low <= converted <= high and above < converted < math.inf):
        bounds = {"at least": low, "above": above, "at most": high}
        rule = [f"{words} {bound:g}" for words, bound in bounds.items() if math.isfinite(bound)]
        raise _refused(name, value, ", ".join(["it is a finite number", *rule]))
    return converted


def flag(name: str, value: T, optional: bool = False) -> T:
    """True or False."""
    if not (isinstance(value, bool) or (value is None and optional)):
        raise _refused(name, value, "it is True or False", optional)
    return value


def choice(name: str, value: T, allowed: Collection[str], optional: bool = False) -> T:
    """One of the allowed words."""
    if not (isinstance(value, str) and value in allowed) and not (value is None and optional):
        raise _refused(name, value, f"use one of {', '.join(word or repr(word) for word in allowed)}", optional)
    return value


@overload
def text(name: str, value: object, *, empty: bool = False) -> str: ...
@overload
def text(name: str, value: object, *, optional: bool, empty: bool = False) -> str | None: ...
def text(name: str, value: object, *, optional: bool = False, empty: bool = False) -> str | None:
    """A text without NUL or half characters, not blank unless `empty`; a Path becomes its text."""
    if value is None and optional:
        return None
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(value, str) or not (empty or value.strip()) or UNREADABLE.search(value):
        rule = f"it is a text without NUL or lone surrogates{'' if empty else ', and not blank'}"
        raise _refused(name, value, rule, optional)
    return value


def texts(name: str, values: Any) -> tuple[str, ...]:
    """A list of texts, such as names; a single text is none."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise _refused(name, values, "it is a list of texts")
    return tuple(text(f"one of {name}", value) for value in values)


def instance(name: str, value: T, wanted: type, optional: bool = False) -> T:
    """A value of one type, such as `LoRA`."""
    if not (isinstance(value, wanted) or (value is None and optional)):
        raise _refused(name, value, f"it is a {wanted.__name__}", optional)
    return value


def shown(value: object) -> str:
    """A value in one line of a message: a table or a long text only by its beginning."""
    written = " ".join(repr(value).split())
    return written if len(written) <= 100 else f"{written[:100]}..."


def check_parameters(namespace: Mapping[str, Any], **types: type) -> None:
    """Refuse a notebook's parameters that it does not know, or of another type than it declares. `namespace` is the
    notebook's `globals()`, `types` its parameters. Raises ValueError for the first that is wrong."""
    instance("namespace", namespace, Mapping)
    cells = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters")]  # papermill's mark
    injected = {name for cell in cells for name in re.findall(r"^(\w+) = ", cell, re.MULTILINE)}
    if unknown := sorted(injected - set(types)):
        raise ValueError(f"unknown notebook parameter {', '.join(unknown)}: this notebook takes {', '.join(types)}")
    for name, wanted in types.items():
        value = namespace.get(name)
        allowed = (int, float) if wanted is float else wanted
        if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):
            raise ValueError(f"{name} is {value!r}, a {type(value).__name__}: give a {wanted.__name__}")


def _refused(name: str, value: object, rule: str, optional: bool = False) -> ValueError:
    return ValueError(f"{name} is {shown(value)}: {rule}{', or None' if optional else ''}")
