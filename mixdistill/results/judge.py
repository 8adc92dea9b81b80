"""An LLM as second opinion on answers that the rule calls wrong, as in the paper's evaluation (Qwen2.5-32B-Instruct
there).

The judge sees the problem, the gold answer and the extracted answer, nothing else of the completion, and is asked only
where the rule found an answer and called it wrong. Its verdicts lie in a folder of their own in the evaluation's,
`judge/HASH/`; the rule's stay as they are. A killed judge goes on.
"""

from functools import partial
from pathlib import Path

import pandas as pd

from mixdistill import arguments, files, runs
from mixdistill.data.chat import prompt_ids
from mixdistill.data.students import fingerprint, load_student
from mixdistill.generation.generate import complete, length_sorted_batches
from mixdistill.results.evaluate import Scores

PROMPT = """You grade answers to mathematics problems. Compare the student's final answer with the reference answer, \
which is correct.

Problem:
{question}

Reference answer: {gold}
Student's final answer: {answer}

The student's answer is right if it has the same meaning and value as the reference answer. Its form may differ: \
notation, units that the problem gives, the order of a set. A rounded value, a missing or additional part, or another \
sign is wrong. Do not solve the problem again.
Reply with exactly one word: CORRECT or INCORRECT."""
VERDICTS = {"CORRECT": "correct", "INCORRECT": "incorrect"}
MAX_NEW_TOKENS = 16
ANSWER = ["benchmark", "problem_id", "answer"]  # what one verdict is about


def judge(
    scores: Scores, model: str | Path, *, revision: str | None = None, batch_size: int = 32, progress: bool = True
) -> pd.DataFrame:
    """Ask a judge about every answer that the rule calls wrong; verdicts that the evaluation's folder already holds are
    read from it.

    Arguments:
        scores: what `evaluate` returned.
        model: a Hub id such as `Qwen/Qwen2.5-32B-Instruct`, or a local folder in Hugging Face form; decoded greedily.
        revision: commit of a Hub model.
        batch_size: answers judged together.
        progress: print a line after each batch.

    Returns:
        `scores.items` with two more columns. `verdict`: `correct`, `incorrect`, `unreadable` (the judge did not reply
        with one of the two words), or None where it was not asked. `correct_judged`: what is right by the rule or by
        the judge.

    Raises:
        ValueError: a bad argument, no such model, or a question longer than its context.
        OSError: the store can not be read or written.
    """
    arguments.instance("scores", scores, Scores)
    model, revision = arguments.text("model", model), arguments.text("revision", revision, optional=True)
    batch_size = arguments.whole("batch_size", batch_size)
    arguments.flag("progress", progress)
    asked = scores.items[~scores.items["correct"].astype(bool) & scores.items["answer"].notna()]
    asked = asked.drop_duplicates(ANSWER)
    config = {"model": fingerprint(model, revision), "prompt": PROMPT, "max_new_tokens": MAX_NEW_TOKENS}
    folder = scores.folder / "judge" / files.key(config)
    file, owner = folder / "verdicts.jsonl", f"{scores.folder.name}/{folder.name}"
    told = {"name": Path(model).name, "revision": revision} | config
    work = partial(_ask, asked, model, revision, batch_size, told, file, owner, progress)
    runs.once(folder, "judged.json", work)

    verdicts = {tuple(row[name] for name in ANSWER): row["verdict"] for row in files.read_rows(file, owner)}
    if any(answer not in verdicts for answer in asked[ANSWER].itertuples(index=False, name=None)):
        raise files.damaged(file, f"it holds {len(verdicts)} verdicts for {len(asked)} answers")
    answers = scores.items[ANSWER].itertuples(index=False, name=None)
    wrong = ~scores.items["correct"].astype(bool)
    found = [verdicts.get(answer) if wrong_one else None for answer, wrong_one in zip(answers, wrong, strict=True)]
    right = [verdict == "correct" for verdict in found]
    return scores.items.assign(verdict=found, correct_judged=~wrong | pd.Series(right, scores.items.index, dtype=bool))


def judge_table(judged: pd.DataFrame) -> pd.DataFrame:
    """By benchmark: accuracy by the rule and with the judge, and how many answers it was asked about and called
    what.
    """
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
    """`correct`, `incorrect`, or `unreadable` for anything but one of the two words, whatever dots and stars stand
    around it.
    """
    return VERDICTS.get(reply.strip(" \n\t.*_\"'`").upper(), "unreadable")


def _ask(
    asked: pd.DataFrame,
    model: str,
    revision: str | None,
    batch_size: int,
    told: dict,
    file: Path,
    owner: str,
    progress: bool,
) -> dict:
    """Ask about every answer that has no stored verdict yet, batch by batch; returns the counts for `judged.json`."""
    rows = files.read_rows(file, owner)
    have = {tuple(row[name] for name in ANSWER) for row in rows}
    missing = [row for row in asked.to_dict("records") if tuple(row[name] for name in ANSWER) not in have]
    judging = load_student(model, revision) if missing else None
    questions = [PROMPT.format(**{name: row[name] for name in ("question", "gold", "answer")}) for row in missing]
    prompts = [prompt_ids(judging.tokenizer, question, "gsm8k") for question in questions]  # as a bare question
    longest = max(map(len, prompts), default=0)
    if missing and longest + MAX_NEW_TOKENS > judging.context:
        raise ValueError(
            f"a question to the judge has {longest} tokens, which with {MAX_NEW_TOKENS} for its reply exceed the "
            f"context of {judging.context} of {model!r}: use a judge with a longer one"
        )
    files.write_json(file.with_name("config.json"), told)
    files.append_rows(file, rows, owner, at=0)  # without what a kill has left of a further row
    batches = length_sorted_batches(prompts, batch_size)
    for number, batch in enumerate(batches, start=1):
        replies = complete(judging, [prompts[i] for i in batch], MAX_NEW_TOKENS)
        new = [
            {name: missing[i][name] for name in ANSWER} | {"verdict": verdict_of(reply.text), "reply": reply.text}
            for i, reply in zip(batch, replies, strict=True)
        ]
        files.append_rows(file, new, owner, at=len(rows))
        rows += new
        if progress:
            print(f"judge: {number}/{len(batches)} batches", flush=True)
    return {"n_asked": len(rows)} | runs.machine()
