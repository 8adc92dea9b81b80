"""Columns of anybody's data set. Only the named ones are looked at, and values stay as they are written: numbers keep
their digits, dates and ids their form."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, load_dataset, load_from_disk

from mixdistill.arguments import UNREADABLE, shown, text

FILES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
ADVICE = {
    "file": "mend the file, or give another",
    "folder": "give a folder written by Dataset.save_to_disk, and a split that it holds",
    "Hub data set": "check name, split, network and, if it is gated, `hf auth login`; or give a local file (a "
    "benchmark's in the folder $MIXDISTILL_DATA)",
}
LISTS = {"data", "rows", "examples", "instances", "problems", "questions", "test"}  # usual names of a list of rows
Columns = dict[str, list[object]]
MISSING = {"nan", "NaN", "None", "null", "NULL", "N/A", "<NA>"}  # what other programs write where there is no text


class Number(str):
    """A number as it is written, such as `0.10`; NaN and the infinities too."""


def read_table(
    source: str,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    split: str | None = None,
    hub_split: str = "train",
    revision: str | None = None,
    config: str | None = None,
) -> Columns:
    """The `needed` columns of a data set, and of the `optional` ones those that it has, by name.

    Arguments:
        source: a file of `FILES`; a folder written by `Dataset.save_to_disk`; or a Hub data set as owner/name. Without
            a `split`, `hub_split` is read of the latter, and of a folder of splits.

    Raises ValueError: no such source, one that cannot be read, no rows, a missing column, or an option that such a
    source does not use.
    """
    path, columns = local_path(source), [*needed, *optional]
    kind = "file" if os.path.isfile(path) else "folder" if os.path.isdir(path) else "Hub data set"
    if kind != "Hub data set":
        only_used(source, f"it is a {kind}", split=split if kind == "file" else None, revision=revision)
    elif path.suffix.lower() in FILES or source.count("/") != 1 or source.startswith((".", "/", "~")):
        advice = "give an existing file or folder, a Hub data set as owner/name, or a set that is known by name"
        raise ValueError(f"there is no file {shown(source)}, here or in $MIXDISTILL_DATA: {advice}")
    try:
        if kind == "file":
            names, table = _read_file(path, columns)
        elif kind == "folder":
            saved = load_from_disk(str(path))
            several = isinstance(saved, DatasetDict) and split is None
            names, table = _read_set(saved, columns, hub_split if several else split)
        else:
            data = load_dataset(source, config, split=split or hub_split, revision=revision)
            names, table = _read_set(data, columns, None)
    except Exception as error:  # every format has errors of its own
        reason = f"{type(error).__name__}: {error}".splitlines()[0].removeprefix("ValueError: ")
        advice = "save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ADVICE[kind]
        raise ValueError(f"cannot load {source!r} ({reason}): {advice}") from error
    missing = [name for name in needed if name not in names]
    if names and missing:
        advice = (
            "name the right ones with columns={'question': ..., ...} of load_problems or load_traces, in the fields"
        )
        advice += " of a ProblemSet or TraceSet, or as own.csv:Body+Question:Answer in BENCHMARKS (a file that is read"
        advice += " under a benchmark's name can name none: give its own name)"
        listed = [name if name == name.strip() else repr(name) for name in names[:30]]
        only = ", ".join(listed) + f" and {len(names) - 30} others" * (len(names) > 30)
        raise ValueError(f"{source!r} has no column {', '.join(map(repr, missing))}, only {only}: {advice}")
    if not any(table.values()):
        raise ValueError(f"{source!r} holds no rows: give a data set with at least one")
    return table


def local_path(source: str) -> Path:
    """Where a file or folder lies: as given, or else in the folder `$MIXDISTILL_DATA`."""
    path = os.path.expanduser(source)
    folder = os.path.abspath(os.path.expanduser(os.environ.get("MIXDISTILL_DATA", "")))
    if os.environ.get("MIXDISTILL_DATA"):
        os.environ["MIXDISTILL_DATA"] = folder  # for child processes, and when the working directory changes
    kept = os.path.join(folder, path)
    return Path(kept if os.path.exists(kept) and not os.path.exists(path) else path)


def of_pocket(source: str) -> bool:
    """Whether a name is one of the pocket world's, also where its case is another: no file or folder has that one."""
    return source.startswith("pocket/") or (source.casefold().startswith("pocket/") and not local_path(source).exists())


def file_name(source: str) -> str:
    """What a source is called wherever it lies: a file or folder by its own name, a Hub data set by its id."""
    path = local_path(source)
    return os.path.basename(os.path.abspath(path)) if os.path.exists(path) else source  # of a link its own name


def column_names(columns: object, needed: Sequence[str], optional: Sequence[str]) -> dict[str, list[str]]:
    """What each column that is read is called: the needed ones as here, unless `columns` says otherwise. A question may
    be in several columns."""
    known, given = [*needed, *optional], {} if columns is None else columns
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        rule = f"it is a dictionary from some of {', '.join(known)} to the names in the data"
        raise ValueError(f"columns is {shown(columns)}: {rule}")
    names = {}
    for name in [*needed, *given]:
        own = given.get(name, name)
        several = name == "question" and isinstance(own, list | tuple) and own
        names[name] = [text(f"columns[{name!r}]", one) for one in (own if several else [own])]
    if len({one for name in needed for one in names[name]}) < sum(len(names[name]) for name in needed):
        raise ValueError(f"columns is {shown(columns)}: {' and '.join(needed)} are two columns, name each its own")
    return names


def join(table: Columns, names: Sequence[str]) -> list[object]:
    """A column or, of several columns whose texts make up one, these joined by a blank; where one of them is no text,
    what it is."""
    if len(names) == 1:
        return table[names[0]]
    found: list[object] = []
    for row in zip(*(table[name] for name in names), strict=True):
        odd = [part for part in row if flaw(part)]
        found.append(odd[0] if odd else " ".join(str(part).strip() for part in row))
    return found


def only_used(source: str, rule: str, **options: object) -> None:
    """Raise ValueError if an option is given (is neither None nor empty) that this kind of source does not use."""
    given = [name for name, value in options.items() if value is not None and value != ""]
    if given:
        raise ValueError(f"{source!r} takes no {' and no '.join(given)} ({rule}): leave out what it does not use")


def texts(values: Sequence[object], what: str, advice: str, numbers: bool = False) -> list[str]:
    """All values as text, with `numbers` also numbers; ValueError with the first rows whose value is none, and why."""
    flaws = {row: found for row, value in enumerate(values) if (found := flaw(value, numbers))}
    if flaws:
        rows = {found: [row for row in flaws if flaws[row] == found] for found in flaws.values()}
        where = [f"{found} in {len(of)} of {len(values)} rows (the first: {of[:5]})" for found, of in rows.items()]
        raise ValueError(f"{what} {', '.join(where)}: {advice}")
    return [str(value) for value in values]


def flaw(value: object, numbers: bool = False) -> str:
    """Why a value is no text that is not blank; empty if it is one. With `numbers`, a finite number is one too."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is empty"
    if isinstance(value, Number) and value.strip("+-").lower() in ("nan", "inf", "infinity"):
        return f"is {value}"
    if isinstance(value, Number) or type(value) is int:
        return "" if numbers else "is a number"
    if not isinstance(value, str):
        return f"is a {type(value).__name__}"
    if not numbers and value.strip() in MISSING:
        return f"is {value.strip()!r}"
    return "holds NUL or a lone surrogate" if UNREADABLE.search(value) else ""


def _read_file(path: Path, columns: Sequence[str]) -> tuple[list[str], Columns]:
    """The names of all columns, and the values of those that are asked for."""
    kind = path.suffix.lower()
    if kind not in FILES:
        raise ValueError(f"its name ends in {kind!r}, save it as one of {', '.join(FILES)}")
    if kind == ".parquet":
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if twice := [name for name in columns if names.count(name) > 1]:
            raise ValueError(f"it names the column {twice[0]!r} twice")
        return names, _values(file.read(columns=[name for name in columns if name in names]))
    rows = _csv_rows(path) if kind in (".csv", ".tsv") else _rows_in(_json_rows(path), columns)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, {name: [row.get(name) for row in rows] for name in columns if name in names}


def _rows_in(rows: list[dict[str, object]], columns: Sequence[str]) -> list[dict[str, object]]:
    """The rows, also those of one object: as its only list, under a usual name, or each under a name of its own."""
    lone = rows[0] if len(rows) == 1 else {}
    if any(isinstance(lone.get(name), str) for name in columns):
        return rows
    lists = {name: value for name, value in lone.items() if isinstance(value, list)}
    for of in lists.values() if len(lists) == 1 and lists.keys() <= LISTS else ():
        if of and all(isinstance(row, dict) for row in of):
            return of
    if len(lone) > 1 and all(isinstance(row, dict) and set(columns) & row.keys() for row in lone.values()):
        return [row for row in lone.values() if isinstance(row, dict)]
    if held := [name for name, value in lone.items() if isinstance(value, dict | list)]:
        raise ValueError(f"it is one object, with {shown(held[0])} in it: write a list of objects, one a row")
    return rows


def _json_rows(path: Path) -> list[dict[str, object]]:
    """JSON Lines, or one list of objects."""
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_float=Number, parse_int=Number, parse_constant=Number)
    content = path.read_text(encoding="utf-8-sig").strip()
    rows, end = [], 0
    while end < len(content):
        value, end = decoder.raw_decode(content, end)
        rows += value if isinstance(value, list) else [value]
        while content[end : end + 1].isspace():
            end += 1
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is no object with named columns")
    return rows


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object names a key twice, of {', '.join(found)}")
    return found


def _csv_rows(path: Path) -> list[dict[str, object]]:
    """Not by pandas, which fills short rows, or pyarrow, which closes an open quote, both without a word."""
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is below a long trace
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        # A header of one name with a mark in it is one of several columns that this mark separates.
        mark = next((mark for mark in "\t;|" if mark in first and "," not in first), ",")
        file.seek(0)
        # Quotes in a .tsv file are letters, as in the format's definition.
        plain = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix.lower() == ".tsv" else {"delimiter": mark}
        reader = csv.DictReader(file, strict=True, **plain)
        rows, names = list(reader), reader.fieldnames or ()
    if twice := [name for name in names if names.count(name) > 1 and name.strip()]:  # spreadsheets end in blank ones
        raise ValueError(f"its header names the column {twice[0]!r} twice")
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has more or fewer fields than the header")
    return rows


def _read_set(data: Dataset | DatasetDict, columns: Sequence[str], split: str | None) -> tuple[list[str], Columns]:
    splits = data if isinstance(data, DatasetDict) else {None: data}
    if split not in splits:
        raise ValueError(f"split is {split!r}, it holds {', '.join(map(str, splits))}")
    names = splits[split].column_names
    # Without the other columns, whose images or sounds would be opened from wherever they say that they lie.
    named = splits[split].select_columns([name for name in columns if name in names])
    return names, _values(named.with_format("arrow")[:])


def _values(table: pa.Table) -> Columns:
    columns: Columns = {}
    known = Features.from_arrow_schema(table.schema) if b"huggingface" in (table.schema.metadata or {}) else {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_floating(column.type):
            column = column.cast(pa.string()).cast(pa.float64())  # so that the 0.1 of float32 is 0.1
        elif pa.types.is_list(column.type) and pa.types.is_floating(column.type.value_type):
            column = column.cast(pa.list_(pa.string())).cast(pa.list_(pa.float64()))
        values = column.to_pylist()
        if isinstance(label := known.get(name), ClassLabel):  # a number that stands for a name
            values = [value if value is None else label.int2str(value) for value in values]
        columns[name] = [_as_json(value) for value in values]
    return columns


def _as_json(value: object) -> object:
    """A value as a JSON file gives it: numbers as they are written, also in a list."""
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    return Number(value) if type(value) in (int, float, Decimal) else value
