"""An LLM as second opinion on answers that the rule calls wrong, as in the paper (Qwen2.5-32B-Instruct there).

The judge sees the problem, the gold answer and the extracted answer, nothing else of the completion, and is asked only
where the rule found an answer and called it wrong. It is evaluated on these questions as every student is on problems:
its replies lie in the run store, and a killed judge goes on.
"""

import warnings
from pathlib import Path

import pandas as pd

from mixdistill import arguments
from mixdistill.data.problems import Problem
from mixdistill.results.evaluate import Scores, as_run, evaluate
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
    scores: Scores,
    model: str | Path,
    *,
    revision: str | None = None,
    thinking: bool | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask a judge about every answer that the rule calls wrong; replies that the run store already holds are read.

    Arguments:
        scores: what `evaluate` returned.
        model: a Hub id such as `Qwen/Qwen2.5-32B-Instruct`, or a local folder in Hugging Face form; decoded greedily.
        thinking: the switch of a chat template that has one; a judge that thinks has no room for its verdict.
        revision, batch_size, progress: as in `evaluate`.

    Returns:
        `scores.items` with two more columns. `verdict`: `correct`, `incorrect`, `unreadable` (the judge did not reply
        with one of the two words), or None where it was not asked. `correct_judged`: what is right by the rule or by
        the judge.

    Raises ValueError, OSError and RuntimeError as `evaluate` does.
    """
    arguments.instance("scores", scores, Scores)
    arguments.whole("batch_size", batch_size)
    arguments.flag("progress", progress)
    arguments.flag("thinking", thinking, optional=True)
    run = as_run(model, revision)
    doubted = ~scores.items["correct"].astype(bool) & scores.items["answer"].notna()
    asked = scores.items.loc[doubted, ["question", "gold", *ANSWER]].drop_duplicates(ANSWER)
    verdicts = asked[ANSWER].assign(verdict=None)
    if len(asked):
        questions = [  # a problem may hold no NUL
            Problem(str(at), PROMPT.format_map(row).replace("\0", ""), "CORRECT", "", "judge", "pocket")
            for at, row in enumerate(asked.to_dict("records"))
        ]
        replies = evaluate(
            run, questions, max_new_tokens=MAX_NEW_TOKENS, thinking=thinking, batch_size=batch_size, progress=progress
        )
        assert replies is not None  # as always without stored_only
        verdicts["verdict"] = replies.items["response"].map(verdict_of).to_numpy()
        if verdicts["verdict"].eq("unreadable").all():
            what = f"not one of {len(verdicts)} replies of {str(model)!r} is a verdict, such as"
            advice = "take a judge that follows instructions, with thinking=False where its template thinks"
            warnings.warn(f"{what} {arguments.shown(replies.items['response'][0])}: {advice}", stacklevel=2)
    judged = scores.items.merge(verdicts, how="left", on=ANSWER)
    judged["verdict"] = judged["verdict"].astype(object).where(doubted, None)
    return judged.assign(correct_judged=judged["correct"].astype(bool) | judged["verdict"].eq("correct"))


def judge_table(judged: pd.DataFrame) -> pd.DataFrame:
    """By benchmark: accuracy by the rule and with the judge, how many answers it was asked about, and its verdicts."""
    require(judged, "benchmark", "correct", "correct_judged", "verdict")
    table = judged.groupby("benchmark", sort=False).agg(
        n=("correct", "size"),
        accuracy_rule=("correct", "mean"),
        accuracy_judged=("correct_judged", "mean"),
        n_asked=("verdict", "count"),
    )
    for verdict in VERDICTS:
        table[f"n_{verdict}"] = judged["verdict"].eq(verdict).groupby(judged["benchmark"]).sum()
    return table.reset_index()


def verdict_of(reply: str) -> str:
    """The one word of a reply, whatever dots and stars stand around it; `unreadable` for anything else."""
    word = reply.strip(" \n\t.*_\"'`").lower()
    return word if word in VERDICTS else "unreadable"
