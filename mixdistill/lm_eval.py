"""Results in the form of lm-evaluation-harness, and side by side with what it found.

The form is that of `--log_samples` in lm-evaluation-harness 0.4.13 (`samples_TASK_TIME.jsonl`, written by its `EvaluationTracker`):
one JSON object a line, for each document and filter.

| field                               | what                                                                             |
|-------------------------------------|----------------------------------------------------------------------------------|
| doc_id, doc, target                 | place in the task, the data set's row, the right answer as text                  |
| arguments                           | `{"gen_args_0": {"arg_0": prompt, "arg_1": generation settings}}`                |
| resps, filtered_resps               | `[[response, ...]]`, as many as `repeats` asks for; `[answer]` after the filter  |
| filter, metrics                     | the filter's name; names of the metrics (older logs lack both)                   |
| doc_hash, prompt_hash, target_hash  | SHA-256                                                                          |
| exact_match, ...                    | each metric's value for this document                                            |
"""

import json
import re
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import pandas as pd

from mixdistill import runs
from mixdistill.evaluate import Scores

OUTCOMES = ("ours higher", "theirs higher", "only ours", "only theirs", "agree")


def export_lm_eval(scores: Scores, folder: str | Path) -> list[Path]:
    """Write one `samples_BENCHMARK_TIME.jsonl` a benchmark to `folder`, and return their paths.

    A line is a problem. `exact_match` is the mean over its samples, `doc_id` its place among the benchmark's problems, `arg_0` the
    bare question (items do not hold the prompt), the filter `mixdistill`. Where there is no answer, it is `[invalid]`, as theirs.

    Raises ValueError if two benchmarks would share a file.
    """
    folder, time = Path(folder), datetime.now().isoformat().replace(":", "-")
    groups = dict(tuple(scores.items.groupby("benchmark", sort=False)))
    tasks = {name: re.sub(r"\W", "_", name) for name in groups}
    paths = {name: folder / f"samples_{task}_{time}.jsonl" for name, task in tasks.items()}
    if len(set(paths.values())) < len(paths):
        raise ValueError(f"of the benchmarks {', '.join(paths)} two would share a file: export them one by one")
    folder.mkdir(parents=True, exist_ok=True)
    for name, items in groups.items():
        problems = items.sort_values("sample", kind="stable").groupby("problem_id", sort=False)
        lines = [json.dumps(_sample(i, rows), ensure_ascii=False) + "\n" for i, (_, rows) in enumerate(problems)]
        runs.replace(paths[name], lambda path, lines=lines: path.write_text("".join(lines), encoding="utf-8"))
    return list(paths.values())


def compare_lm_eval(
    scores: Scores, path: str | Path, metric: str = "exact_match", filter: str | None = None
) -> pd.DataFrame:
    """Our grades beside those of a harness log, one row an item; `agreement` sums it up.

    Items are paired by question: a text field of `doc` (`question`, `problem`, ...; in each file the one that pairs most) that
    equals ours but for white space. Of equal questions the first pairs with the first. Task and file names play no part.

    Arguments:
        path: a samples file, or a folder with one for each task (MATH has seven).
        metric: whose values are compared with ours, which are the means of `correct` over a problem's samples.
        filter: for tasks logged with several filters (GSM8K: `strict-match`, `flexible-extract`), the one to compare with.

    Returns: rows with disagreements first, then what has no pair, then the rest. Columns:
        outcome: `ours higher` (for one sample: we say right, they wrong), `theirs higher`, `agree`; `only ours`, `only theirs`.
        benchmark, problem_id, gold; task, doc_id, target: ours; theirs. Empty without a pair.
        question, ours, theirs: the question and both values.
        our_answer, their_answer, our_response, their_response: text, or a list where several samples were drawn.

    Raises ValueError for a log that is missing or damaged, has other metrics, several filters and none chosen, an item twice, or
    no question of ours.
    """
    ours = _our_items(scores.items)
    files = _samples_files(Path(path))
    asked = set(ours["text"])
    theirs = pd.concat([_their_items(task, file, metric, filter, asked) for task, file in files.items()])
    if not asked & set(theirs["text"]):
        raise ValueError(
            f"{str(path)!r} has none of our {len(ours)} questions among its {len(theirs)}: compare evaluations of the same "
            "benchmark and split"
        )
    for side in (ours, theirs):
        side["occurrence"] = side.groupby("text").cumcount()
    both = ours.merge(theirs, how="outer", on=["text", "occurrence"], indicator="side")
    outcome = both["side"].astype(str).map({"left_only": "only ours", "right_only": "only theirs"})
    difference = both["ours"] - both["theirs"]
    outcome = outcome.mask(difference > 1e-9, "ours higher").mask(difference < -1e-9, "theirs higher").fillna("agree")
    both["question"] = both["question"].fillna(both["their_question"])
    both["outcome"] = pd.Categorical(outcome, OUTCOMES)
    both = both.sort_values(["outcome", "place", "task", "doc_id"], ignore_index=True)
    return both[_COLUMNS].astype({"outcome": str, "doc_id": "Int64"})


def agreement(compared: pd.DataFrame) -> pd.DataFrame:
    """What `compare_lm_eval` found, one row a benchmark (a task, for items of theirs only) and one for all.

    Accuracies and the agreement rate are about the `n_paired` items; those without a pair are counted beside them.
    """
    where = compared["benchmark"].fillna(compared["task"])
    groups = [*compared.groupby(where, sort=False), ("all", compared)]
    rows = []
    for name, group in groups:
        count = group["outcome"].value_counts()
        paired = group[group["ours"].notna() & group["theirs"].notna()]
        rows.append(
            {"benchmark": name, "n_paired": len(paired)}
            | {"accuracy_ours": paired["ours"].mean(), "accuracy_theirs": paired["theirs"].mean()}
            | {"agreement": (paired["outcome"] == "agree").mean()}
            | {outcome.replace(" ", "_"): int(count.get(outcome, 0)) for outcome in OUTCOMES[:-1]}
        )
    return pd.DataFrame(rows)


_COLUMNS = [
    *("outcome", "benchmark", "problem_id", "task", "doc_id", "question", "gold", "target", "ours", "theirs"),
    *("our_answer", "their_answer", "our_response", "their_response"),
]


def _sample(doc_id: int, rows: pd.DataFrame) -> dict:
    first = rows.iloc[0]
    doc = {"problem_id": first["problem_id"], "question": first["question"], "answer": first["gold"]}
    answers = [answer if isinstance(answer, str) else "[invalid]" for answer in rows["answer"]]
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": first["gold"],
        "arguments": {"gen_args_0": {"arg_0": first["question"], "arg_1": {}}},
        "resps": [rows["response"].tolist()],
        "filtered_resps": answers if len(answers) == 1 else [answers],
        "filter": "mixdistill",
        "metrics": ["exact_match"],
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(first["question"]),
        "target_hash": _hash(first["gold"]),
        "exact_match": float(rows["correct"].mean()),
    }


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _our_items(items: pd.DataFrame) -> pd.DataFrame:
    """One row a problem."""
    problems = items.sort_values("sample", kind="stable").groupby(["benchmark", "problem_id"], sort=False)
    rows = [
        {
            "place": place,
            "benchmark": benchmark,
            "problem_id": problem_id,
            "gold": group["gold"].iloc[0],
            "question": group["question"].iloc[0],
            "text": _plain(group["question"].iloc[0]),
            "ours": float(group["correct"].mean()),
            "our_answer": _one_or_all(group["answer"].tolist()),
            "our_response": _one_or_all(group["response"].tolist()),
        }
        for place, ((benchmark, problem_id), group) in enumerate(problems)
    ]
    return pd.DataFrame(rows)


def _samples_files(path: Path) -> dict[str, Path]:
    """The samples files of a folder, or the one given, by task."""
    files = sorted(path.glob("samples_*.jsonl")) if path.is_dir() else [path]
    if not files or not path.exists():
        raise ValueError(
            f"there is no samples_TASK_TIME.jsonl at {str(path)!r}: give a log that lm_eval wrote with --log_samples"
        )
    tasks: dict[str, Path] = {}
    for file in files:
        task = file.stem.removeprefix("samples_").rsplit("_", 1)[0]
        if task in tasks:
            raise ValueError(f"{str(path)!r} has two logs of {task}, {tasks[task].name} and {file.name}: give one file")
        tasks[task] = file
    return tasks


def _their_items(task: str, file: Path, metric: str, filter: str | None, asked: set[str]) -> pd.DataFrame:
    """One row a document of the task. Of the text fields of `doc` the one that most often is one of the questions `asked`."""
    samples = _filtered(_read(file), filter, file)
    lacking = [sample for sample in samples if not isinstance(sample.get(metric), int | float)]
    if lacking:
        numbers = [name for name, value in lacking[0].items() if isinstance(value, int | float) and name != "doc_id"]
        raise ValueError(
            f"{file.name} has no number {metric!r} for {len(lacking)} of {len(samples)} items: choose the metric among "
            f"{', '.join(numbers) or 'none'}"
        )
    if len({sample["doc_id"] for sample in samples}) < len(samples):
        raise ValueError(f"{file.name} holds a doc_id twice: two runs were written to one file, split them")
    fields = {name: 0 for sample in samples for name, value in sample["doc"].items() if isinstance(value, str)}
    for name in fields:
        fields[name] = sum(_plain(str(sample["doc"].get(name))) in asked for sample in samples)
    field = max(fields, key=fields.get, default="")
    questions = [str(sample["doc"].get(field, "")) for sample in samples]
    return pd.DataFrame(
        {
            "task": task,
            "doc_id": [sample["doc_id"] for sample in samples],
            "target": [sample.get("target") for sample in samples],
            "their_question": questions,
            "text": [_plain(question) for question in questions],
            "theirs": [float(sample[metric]) for sample in samples],
            "their_answer": [_one_or_all(_flat(sample["filtered_resps"])) for sample in samples],
            "their_response": [_one_or_all(_flat(sample["resps"])) for sample in samples],
        }
    )


def _read(file: Path) -> list[dict]:
    samples = []
    # Not `splitlines`: the harness writes U+2028 and its like as they are.
    for number, line in enumerate(file.read_text(encoding="utf-8").strip("\n").split("\n"), start=1):
        try:
            sample = json.loads(line)
            missing = {"doc_id", "doc", "resps", "filtered_resps"} - sample.keys()
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"line {number} of {file.name} is no JSON object ({error}): give a whole samples log"
            ) from error
        if missing or not isinstance(sample["doc"], dict):
            raise ValueError(
                f"line {number} of {file.name} lacks {', '.join(sorted(missing)) or 'the fields of doc'}: give a log that lm_eval "
                "wrote with --log_samples"
            )
        samples.append(sample)
    return samples


def _filtered(samples: list[dict], filter: str | None, file: Path) -> list[dict]:
    names = list(dict.fromkeys(sample.get("filter", "none") for sample in samples))
    if len(names) == 1:
        return samples
    if filter not in names:
        raise ValueError(
            f"{file.name} has the filters {', '.join(names)}, not {filter!r}: choose one with filter={names[0]!r}"
        )
    return [sample for sample in samples if sample.get("filter", "none") == filter]


def _plain(text: str) -> str:
    return "".join(text.split())


def _flat(values: list) -> list:
    return [inner for value in values for inner in (_flat(value) if isinstance(value, list) else [value])]


def _one_or_all(values: list) -> object:
    return values[0] if len(values) == 1 else values
