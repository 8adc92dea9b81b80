"""An LLM as second opinion on answers that the rule calls wrong, as in the paper's evaluation (Qwen2.5-32B-Instruct
there).

The judge sees the problem, the gold answer and the extracted answer, nothing else of the completion, and is asked only
where the rule found an answer and called it wrong. Its verdicts lie in a folder of their own in the evaluation's,
`judge/HASH/verdicts.jsonl`; the rule's stay as they are. A killed judge goes on.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from mixdistill import arguments, files, runs
from mixdistill.data.chat import prompt_ids
from mixdistill.data.students import fingerprint, load_student
from mixdistill.generation.generate import complete, length_sorted_batches
from mixdistill.results.evaluate import Scores
from mixdistill.results.stats import require

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
VERDICTS = ("correct", "incorrect", "unreadable")
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
        progress: print a line after each batch, and within a slow one.

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
    doubted = ~scores.items["correct"].astype(bool) & scores.items["answer"].notna()
    asked = scores.items[doubted].drop_duplicates(ANSWER)
    config = {"model": fingerprint(model, revision), "prompt": PROMPT, "max_new_tokens": MAX_NEW_TOKENS}
    folder = scores.folder / "judge" / files.key(config)
    file, owner = folder / "verdicts.jsonl", f"{scores.folder.name}/{folder.name}"

    def work() -> dict[str, Any]:
        """Ask about every answer that has no stored verdict yet, batch by batch."""
        rows = files.read_rows(file, owner)
        missing = asked[~_answers(asked).isin(_answers(pd.DataFrame(rows, columns=ANSWER)))].to_dict("records")
        judging = load_student(model, revision)
        prompts = [prompt_ids(judging.tokenizer, PROMPT.format_map(row), "gsm8k") for row in missing]  # as they are
        longest = max(map(len, prompts), default=0)
        if longest + MAX_NEW_TOKENS > judging.context:
            raise ValueError(
                f"a question to the judge has {longest} tokens, which with {MAX_NEW_TOKENS} for its reply exceed the "
                f"context of {judging.context} of {model!r}: use a judge with a longer one"
            )
        files.write_json(folder / "config.json", {"name": Path(model).name, "revision": revision} | config)
        files.append_rows(file, rows, owner, at=0)  # without what a kill has left of a further row
        batches = length_sorted_batches(prompts, batch_size)
        for number, batch in enumerate(batches, start=1):
            replies = complete(judging, [prompts[i] for i in batch], MAX_NEW_TOKENS, progress=progress)
            texts = [reply.response for reply in replies]
            new = [
                {name: missing[i][name] for name in ANSWER} | {"verdict": verdict_of(text), "reply": text}
                for i, text in zip(batch, texts, strict=True)
            ]
            files.append_rows(file, new, owner, at=len(rows))
            rows += new
            if progress:
                print(f"judge: {number}/{len(batches)} batches", flush=True)
        return {"n_asked": len(rows)} | runs.machine()

    if len(asked):
        runs.once(folder, "judged.json", work)
    stored = pd.DataFrame(files.read_rows(file, owner), columns=[*ANSWER, "verdict"])
    judged = scores.items.merge(stored, how="left", on=ANSWER)
    judged["verdict"] = judged["verdict"].where(doubted, None)
    if judged["verdict"][doubted].isna().any():
        raise files.damaged(file, f"it holds {len(stored)} verdicts for {len(asked)} answers")
    return judged.assign(correct_judged=judged["correct"].astype(bool) | judged["verdict"].eq("correct"))


def judge_table(judged: pd.DataFrame) -> pd.DataFrame:
    """By benchmark: accuracy by the rule and with the judge, and how many answers it was asked about and called
    what.
    """
    require(judged, "benchmark", "correct", "correct_judged", "verdict")
    groups = judged.groupby("benchmark", sort=False)
    table = groups.agg(
        n=("correct", "size"),
        accuracy_rule=("correct", "mean"),
        accuracy_judged=("correct_judged", "mean"),
        n_asked=("verdict", "count"),
    )
    for verdict in VERDICTS:
        table[f"n_{verdict}"] = judged["verdict"].eq(verdict).groupby(judged["benchmark"]).sum()
    return table.reset_index()


def verdict_of(reply: str) -> str:
    """`correct`, `incorrect`, or `unreadable` for anything but one of the two words, whatever dots and stars stand
    around it.
    """
    word = reply.strip(" \n\t.*_\"'`").lower()
    return word if word in VERDICTS else "unreadable"


def _answers(items: pd.DataFrame) -> pd.Index:
    return pd.MultiIndex.from_frame(items[ANSWER])
