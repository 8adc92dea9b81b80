"""Rows of anybody's data set: a local file, a folder of `Dataset.save_to_disk`, or a Hub data set.

Only the named columns are looked at, and values stay as they are written: numbers keep their digits, dates and ids
their form.
"""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from mixdistill.arguments import shown, text

Table = tuple[list[str], list[dict]]  # the names of all columns, and the rows


class Number(str):
    """A number as it is written, such as `0.10`; NaN and the infinities too."""


def local_path(source: str) -> Path:
    """Where a file or folder lies: as given, or else in the folder `$MIXDISTILL_DATA`."""
    path = Path(os.path.expanduser(source))
    kept = Path(os.path.expanduser(os.environ.get("MIXDISTILL_DATA", "."))) / path
    return kept if kept.exists() and not path.exists() else path


def read_table(
    source: str,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    split: str | None = None,
    default_split: str = "train",
    revision: str | None = None,
    config: str | None = None,
) -> list[dict]:
    """The rows of a data set, by column name.

    Arguments:
        source: a .json, .jsonl, .csv or .parquet file; a folder written by `save_to_disk`; or a Hub data set as
            owner/name.
        needed, optional: the columns to be read.
        split: of a folder that holds several, or of a Hub data set, where None means `default_split`.
        revision, config: of a Hub data set.

    Raises ValueError: no such source, one that cannot be read (a file with its line), no rows, a missing column, or an
    option that such a source does not use.
    """
    path, columns = local_path(source), [*needed, *optional]
    reader = READERS.get(path.suffix.lower())
    if os.path.isfile(path):
        if reader is None:
            raise ValueError(f"{source!r} ends in {path.suffix!r}: use a {', '.join(READERS)} file")
        only_used(source, "a file has neither", split=split, revision=revision)
        advice = "mend the file, or give another"
    elif os.path.isdir(path):
        only_used(source, "a folder has none", revision=revision)
        reader = partial(_read_folder, split=split)
        advice = "give a folder written by Dataset.save_to_disk, and a split that it holds"
    elif reader or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(
            f"there is no file {source!r}, here or in $MIXDISTILL_DATA: give an existing file or folder, a Hub data "
            "set as owner/name, or a set that is known by name"
        )
    else:
        reader = partial(_read_hub, source, split=split or default_split, revision=revision, config=config)
        advice = (
            "check name, split, network and, if it is gated, `hf auth login`; or give a local file (a benchmark's in "
            "the folder $MIXDISTILL_DATA)"
        )
    try:
        names, rows = reader(path, columns)
    except Exception as error:  # every format has errors of its own
        reason = f"{type(error).__name__}: {error}".splitlines()[0].removeprefix("ValueError: ")
        raise ValueError(f"cannot load {source!r} ({reason}): {advice}") from error
    missing = [name for name in needed if name not in names]
    if names and missing:
        raise ValueError(
            f"{source!r} has no column {', '.join(map(repr, missing))}, only {', '.join(names)}: "
            "name the right ones with columns={'question': ..., ...} (a benchmark's own file has its published ones)"
        )
    if not rows:
        raise ValueError(f"{source!r} holds no rows: give a data set with at least one")
    return rows


def texts(values: Sequence[object], what: str, numbers: bool = False) -> list[str]:
    """All values as text; ValueError with the first rows whose value is none, and why. `numbers` are text too if
    allowed.
    """
    bad = [i for i, value in enumerate(values) if flaw(value, numbers)]
    if bad:
        raise ValueError(
            f"{what} {flaw(values[bad[0]], numbers)} in {len(bad)} of {len(values)} rows (the first: {bad[:5]}): mend "
            "or drop them"
        )
    return [str(value) for value in values]


def column(rows: list[dict], name: str, source: str, numbers: bool = False) -> list[str]:
    """One column as texts, none of them blank; a missing or bad value raises ValueError with its row."""
    return texts([row.get(name) for row in rows], f"column {name!r} of {source!r}", numbers)


def flaw(value: object, numbers: bool = False) -> str:
    """Why a value is no text that is not blank; empty if it is one. With `numbers`, a finite number is one too."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is empty"
    if isinstance(value, Number) or type(value) is int:
        infinite = isinstance(value, Number) and value.strip("+-").lower() in ("nan", "inf", "infinity")
        return f"is {value}" if infinite else "" if numbers else f"is a number ({value})"
    if not isinstance(value, str):
        return f"is a {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is a text that UTF-8 cannot write"
    return ""


def only_used(source: str, rule: str, **options: object) -> None:
    """Raise ValueError if an option is given (is neither None nor empty) that this kind of source does not use."""
    given = [name for name, value in options.items() if value is not None and value != ""]
    if given:
        raise ValueError(f"{source!r} takes no {' and no '.join(given)} ({rule}): leave out what it does not use")


def column_names(columns: object, allowed: Sequence[str], n_needed: int = 2) -> dict[str, str]:
    """What each column that is read is called; the first `n_needed` of the allowed as here, unless `columns` says
    otherwise.
    """
    if columns is not None and not (isinstance(columns, Mapping) and set(columns) <= set(allowed)):
        raise ValueError(
            f"columns is {shown(columns)}: it is a dictionary from some of {', '.join(allowed)} to the file's names"
        )
    given = {name: text(f"columns[{name!r}]", value) for name, value in (columns or {}).items()}
    return {name: name for name in allowed[:n_needed]} | given


def file_name(source: str) -> str:
    """What a source is called wherever it lies: a file or folder by its own name, a Hub data set by its id."""
    path = Path(os.path.expanduser(source))
    return path.resolve().name if path.exists() else source


def _read_json(path: Path, columns: list[str]) -> Table:
    """JSON Lines, or one list of objects."""

    def decode(line: str) -> object:
        return json.loads(line, parse_float=Number, parse_int=Number, parse_constant=Number)

    content = _content(path)
    if content.lstrip().startswith("["):
        rows = decode(content)
    else:
        rows = []
        for number, line in enumerate(content.split("\n"), 1):
            try:
                rows += [decode(line)] if line.strip() else []
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {i} is no object with named columns")
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _read_csv(path: Path, columns: list[str]) -> Table:
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is below a long trace
    reader = csv.reader(io.StringIO(_content(path), newline=""), strict=True)
    try:
        header, *lines = [(reader.line_num, fields) for fields in reader if fields] or [(0, [])]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    names = header[1]
    if len(set(names)) < len(names):
        raise ValueError("its header names a column twice")
    for number, fields in lines:
        if len(fields) != len(names):
            raise ValueError(f"line {number} has {len(fields)} fields, the header {len(names)}")
    return names, [dict(zip(names, fields, strict=True)) for _, fields in lines]


def _content(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8") from error


def _read_parquet(path: Path, columns: list[str]) -> Table:
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    return names, _rows(file.read(columns=[name for name in columns if name in names]))


def _read_folder(path: Path, columns: list[str], split: str | None) -> Table:
    data = load_from_disk(str(path))
    if isinstance(data, DatasetDict):
        split = next(iter(data)) if split is None and len(data) == 1 else split
        if split not in data:
            raise ValueError(f"split is {split!r}, it holds {', '.join(data)}")
        data = data[split]
    elif split is not None:
        raise ValueError(f"split is {split!r}, but it holds one set without splits")
    return data.column_names, _rows_of(data, columns)


def _read_hub(source: str, _: Path, columns: list[str], **where: str | None) -> Table:
    data = load_dataset(source, where.pop("config"), **where)
    return data.column_names, _rows_of(data, columns)


def _rows_of(data: Dataset, columns: list[str]) -> list[dict]:
    """Without the other columns, whose images or sounds would be opened from wherever they say that they lie."""
    named = data.select_columns([name for name in columns if name in data.column_names])
    return _rows(named.with_format("arrow")[:])


def _rows(table: pa.Table) -> list[dict]:
    columns = {name: _values(table[name]) for name in table.column_names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _values(column: pa.ChunkedArray) -> list:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return column.to_pylist()
    whole = ".0" if pa.types.is_floating(kind) else ""  # Arrow writes 27.0 as 27
    written = column.cast(pa.string()).to_pylist()
    return [None if v is None else Number(v + whole if v.lstrip("-").isdigit() else v) for v in written]


READERS = {".json": _read_json, ".jsonl": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
