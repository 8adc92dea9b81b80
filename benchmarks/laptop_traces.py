"""The trace files of the scale `laptop`, from the public repositories that hold them: cloned, converted, checked.

    python benchmarks/laptop_traces.py --out FOLDER         # then export MIXDISTILL_DATA=FOLDER

A trace is kept if its last number is the problem's answer, a problem if all sets of its group keep one: a group's files
hold the same problems in the same order. Problems of `svamp_test.jsonl` are in no trace file. Licences: Apache-2.0, and
MIT for SVAMP's problems.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

SOURCES = {  # repository on GitHub: commit
    # arXiv 2502.18001. The commit that added its data; later ones, such as cc33822, change none of these files.
    "EIT-NLP/Distilling-CoT-Reasoning": "fea28a5ad5fe9a325c1980678df389fcfda16f2e",
    "2hojae/mentor-kd": "c71fb0a55dd5b8db00ca4541f8ffb933f3196fd4",
}
EIT, MENTOR = SOURCES
LEVELS = {"ChatGPT": 6, "gemini": 6, "llama": 4}  # of SVAMP, by teacher, as in the files' names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the trace files")
    parser.add_argument("--clones", type=Path, help="folder of clones that are there, as owner/name; default: clone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clones = args.clones or Path(folder)
        if args.clones is None:
            for name, commit in SOURCES.items():
                clone = ["git", "clone", "--progress", "--no-checkout", f"https://github.com/{name}"]
                try:
                    subprocess.run([*clone, str(clones / name)], check=True)
                    subprocess.run(["git", "-C", str(clones / name), "checkout", "--quiet", commit], check=True)
                except (OSError, subprocess.CalledProcessError) as error:
                    what = f"{name} can not be cloned ({error})"
                    raise SystemExit(f"{what}: look after git and the network, or name clones by --clones") from None
        try:
            convert(clones, args.out)
        except (KeyError, AttributeError, TypeError, ValueError, OSError) as error:
            what = f"{type(error).__name__}: {error}"
            raise SystemExit(f"the clones are not what SOURCES names, or --out is no folder ({what})") from error


def convert(clones: Path, out: Path) -> None:
    """Write the trace files and the test problems of the cloned repositories to `out`."""
    data, mentor = clones / EIT / "data", clones / MENTOR / "data"
    golds = answers(data / "SVAMP_only_ans.json")
    trained = {plain(question) for question in golds}
    problems = [row for part in ("train", "test") for row in read(mentor / "skeleton" / f"svamp_{part}.json")]
    tests = [{"question": row["input"].strip(), "answer": row["answer"].strip()} for row in problems]
    tests = [row for row in tests if plain(row["question"]) not in trained]  # the 300 that EIT's 700 leave of all
    write(out / "svamp_test.jsonl", tests)
    tested = {plain(row["question"]) for row in tests}

    levels = [(f"{teacher}_level{n}", n) for teacher, last in LEVELS.items() for n in range(1, last + 1)]
    files = {f"svamp_{name.lower()}": data / f"SVAMP_{name}_ranked.json" for name, _ in levels}
    write_group({name: traces(read(path), golds) for name, path in files.items()}, out, tested)
    names = [f"gsm8k_{teacher}_level{n}" for teacher in ("gemini", "llama") for n in (1, 2)]
    golds = answers(data / "gsm_train_onlyans.json")
    write_group({name: traces(read(data / f"{name}_ranked.json"), golds) for name in names}, out, set())
    large, small = mentor / "main" / "svamp_3_train.json", mentor / "aug" / "flan-t5_large" / "svamp_rand3_aug3.json"
    write_group({"svamp_gpt35": chains(read(large)), "svamp_flant5large": chains(read(small))}, out, tested)


def answers(path: Path) -> dict[str, str]:
    """Right answers by question."""
    return {row["instruction"].strip(): row["output"].strip() for row in read(path)}


def traces(rows: Iterable[dict], golds: dict[str, str]) -> dict[str, dict]:
    """The right ones of columns `instruction` and `output`, by question."""
    found = {row["instruction"].strip(): row["output"].strip() for row in rows}
    return {q: trace(q, text, golds[q]) for q, text in found.items() if q in golds and ends_with(text, golds[q])}


def chains(rows: Iterable[dict]) -> dict[str, dict]:
    """The first right one of each problem, of columns `input`, `chain`, `answer` and `initial_correct`."""
    found: dict[str, dict] = {}
    for row in rows:
        question, chain, gold = row["input"].strip(), row["chain"].strip(), row["answer"].strip()
        if row["initial_correct"] and ends_with(chain, gold):
            found.setdefault(question, trace(question, f"{chain} The answer is {gold}.", gold))
    return found


def trace(question: str, response: str, answer: str) -> dict[str, str]:
    return {"question": question, "response": response, "answer": answer}


def ends_with(text: str, gold: str) -> bool:
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return bool(numbers) and float(numbers[-1].replace(",", "")) == float(gold.replace(",", ""))


def plain(question: str) -> str:
    """The words and numbers of a question: the sources differ in blanks and points."""
    return " ".join(re.findall(r"\w+", question.lower()))


def write_group(group: dict[str, dict[str, dict]], out: Path, tested: set[str]) -> None:
    """A file a set, each with the problems that all sets have and that are not tested on, sorted."""
    shared = sorted(q for q in set.intersection(*map(set, group.values())) if plain(q) not in tested)
    for name, found in group.items():
        write(out / f"{name}.jsonl", [found[question] for question in shared])


def read(path: Path) -> list[dict]:
    if not path.is_file():
        raise SystemExit(f"{path} is missing: clone its repository again, at the commit that SOURCES names")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{path} is no JSON ({error}): clone its repository again") from None


def write(path: Path, rows: list[dict]) -> None:
    if not rows:
        raise SystemExit(f"{path.name} would be empty: the clones are not those that SOURCES names")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path.name}: {len(rows)}", flush=True)


if __name__ == "__main__":
    main()
