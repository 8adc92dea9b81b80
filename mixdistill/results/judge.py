"""An LLM as second opinion on answers that the rule calls wrong, as in the paper's evaluation (Qwen2.5-32B-Instruct there).

The judge sees the problem, the gold answer and the extracted answer, nothing else of the completion, and is asked only where the rule
found an answer and called it wrong. Its verdicts lie in a file of their own beside the evaluation's; the rule's stay as they are.
"""

import json
import os
from pathlib import Path

import pandas as pd

from mixdistill import runs
from mixdistill.data.chat import prompt_ids
from mixdistill.data.students import fingerprint, load_student
from mixdistill.generation.generate import complete, length_sorted_batches
from mixdistill.results.evaluate import Scores

PROMPT = """You grade answers to mathematics problems. Compare the student's final answer with the reference answer, which is correct.

Problem:
{question}

Reference answer: {gold}
Student's final answer: {answer}

The student's answer is right if it has the same meaning and value as the reference answer. Its form may differ: notation, units that the problem \
gives, the order of a set. A rounded value, a missing or additional part, or another sign is wrong. Do not solve the problem again.
Reply with exactly one word: CORRECT or INCORRECT."""
VERDICTS = {"CORRECT": "correct", "INCORRECT": "incorrect"}
MAX_NEW_TOKENS = 16


def judge(
    scores: Scores, model: str, *, revision: str | None = None, batch_size: int = 32, progress: bool = True
) -> pd.DataFrame:
    """Ask a judge about every answer that the rule calls wrong; verdicts that the evaluation's folder already holds are read from it.

    Arguments:
        scores: what `evaluate` returned.
        model: a Hub id such as `Qwen/Qwen2.5-32B-Instruct`, or a local folder in Hugging Face form; decoded greedily.
        revision: commit of a Hub model.
        batch_size: answers judged together.
        progress: print a line after each batch.

    Returns:
        `scores.items` with two more columns. `verdict`: `correct`, `incorrect`, `unreadable` (the judge did not reply with one of the two
        words), or None where it was not asked. `correct_judged`: what is right by the rule or by the judge.

    Raises:
        ValueError: no such model, or a question longer than its context.
    """
    asked = scores.items[~scores.items["correct"].astype(bool) & scores.items["answer"].notna()]
    asked = asked.drop_duplicates(["problem_id", "answer"])
    config = {"model": fingerprint(model, revision), "prompt": PROMPT, "max_new_tokens": MAX_NEW_TOKENS}
    file = scores.folder / "judge" / f"{runs.key(config)}.jsonl"
    with runs.lock(file.parent):
        verdicts = _read(file)
        missing = [row for row in asked.itertuples() if (row.problem_id, row.answer) not in verdicts]
        if missing:
            runs.write_json(file.with_suffix(".json"), {"name": Path(model).name, "revision": revision} | config)
            verdicts |= _ask(missing, model, revision, batch_size, file, progress)
    found = [
        verdicts.get((row.problem_id, row.answer)) if not row.correct else None for row in scores.items.itertuples()
    ]
    judged = scores.items["correct"].astype(bool) | pd.Series([verdict == "correct" for verdict in found], dtype=bool)
    return scores.items.assign(verdict=found, correct_judged=judged)


def judge_table(judged: pd.DataFrame) -> pd.DataFrame:
    """By benchmark: accuracy by the rule and with the judge, and how many answers it was asked about and called what."""
    rows = []
    for benchmark, items in judged.groupby("benchmark", sort=False):
        counts = items["verdict"].value_counts()
        rows.append(
            {
                "benchmark": benchmark,
                "n": len(items),
                "accuracy_rule": items["correct"].mean(),
                "accuracy_judged": items["correct_judged"].mean(),
                "n_asked": int(counts.sum()),
                **{f"n_{verdict}": int(counts.get(verdict, 0)) for verdict in ("correct", "incorrect", "unreadable")},
            }
        )
    return pd.DataFrame(rows)


def verdict_of(reply: str) -> str:
    """`correct`, `incorrect`, or `unreadable` for anything but one of the two words, whatever dots and stars stand around it."""
    return VERDICTS.get(reply.strip(" \n\t.*_\"'`").upper(), "unreadable")


def _ask(
    rows: list, model: str, revision: str | None, batch_size: int, file: Path, progress: bool
) -> dict[tuple[str, str], str]:
    judging = load_student(model, revision)
    questions = [PROMPT.format(question=row.question, gold=row.gold, answer=row.answer) for row in rows]
    prompts = [prompt_ids(judging.tokenizer, question, "gsm8k") for question in questions]  # as a bare question
    longest = max(map(len, prompts))
    if longest + MAX_NEW_TOKENS > judging.context:
        raise ValueError(
            f"a question to the judge has {longest} tokens, which with {MAX_NEW_TOKENS} for its reply exceed the context of {judging.context} "
            f"of {model!r}: use a judge with a longer one"
        )
    verdicts = {}
    batches = length_sorted_batches(prompts, batch_size)
    for number, batch in enumerate(batches, start=1):
        replies = complete(judging, [prompts[i] for i in batch], MAX_NEW_TOKENS)
        with file.open("a") as out:
            for i, reply in zip(batch, replies, strict=True):
                key = (rows[i].problem_id, rows[i].answer)
                verdicts[key] = verdict_of(reply.text)
                line = {"problem_id": key[0], "answer": key[1], "verdict": verdicts[key], "reply": reply.text}
                out.write(json.dumps(line) + "\n")
            out.flush()
            os.fsync(out.fileno())
        if progress:
            print(f"judge: {number}/{len(batches)} batches", flush=True)
    return verdicts


def _read(file: Path) -> dict[tuple[str, str], str]:
    """The verdicts that are stored; a line that a kill has cut is cut off."""
    if not file.is_file():
        return {}
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    runs.replace(file, lambda path: path.write_text("".join(lines)))
    rows = [json.loads(line) for line in lines]
    return {(row["problem_id"], row["answer"]): row["verdict"] for row in rows}
