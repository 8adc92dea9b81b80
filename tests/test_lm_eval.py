import json
from pathlib import Path

import pandas as pd
import pytest

from mixdistill.evaluate import Scores
from mixdistill.lm_eval import agreement, compare_lm_eval, export_lm_eval

QUESTIONS = ["How many eggs\u2028are left?", "What is $1 + 1$?", "How far is it?", "How old is Ann?"]
GOLD = ["18", "2", "30", "7"]


def scores_of(answers: list[list[str | None]], benchmark: str = "gsm8k") -> Scores:
    """Our evaluation of the first questions, a list of samples' answers for each."""
    rows = [
        {
            "benchmark": benchmark,
            "problem_id": f"{benchmark}/{i}",
            "question": QUESTIONS[i],
            "gold": GOLD[i],
            "sample": sample,
            "response": f"So it is {answer}.",
            "answer": answer,
            "correct": answer == GOLD[i],
        }
        for i, samples in enumerate(answers)
        for sample, answer in enumerate(samples)
    ]
    return Scores(Path("unused"), pd.DataFrame(rows))


def harness_log(path: Path, task: str, answers: dict[int, list[str]], field: str = "question", **changes) -> Path:
    """A samples file as lm_eval 0.4.13 writes it; `answers` by number of the question, one for each filter."""
    filters = ["strict-match", "flexible-extract"]
    rows = [
        {
            "doc_id": doc_id,
            "doc": {field: QUESTIONS[doc_id], "answer": f"Thinking.\n#### {GOLD[doc_id]}"},
            "target": f"Thinking.\n#### {GOLD[doc_id]}",
            "arguments": {
                "gen_args_0": {"arg_0": f"Question: {QUESTIONS[doc_id]}\nAnswer:", "arg_1": {"until": ["Question:"]}}
            },
            "resps": [[f"I say {found[i]}"]],
            "filtered_resps": [found[i]],
            "filter": filters[i],
            "metrics": ["exact_match"],
            "doc_hash": "986c19252f3c7f6eaeff2229e9a5777f96a85c0ceea931a92d2289084dfd518c",
            "prompt_hash": "b7d0342d147aa332159a8ac1e335932b8a27a7aca3a758b41efa721c5bf4984a",
            "target_hash": "623a0fbdf774fcb55e485a3e6b012e6c3965616af5b8eb9b9aebd2f6712be2eb",
            "exact_match": float(found[i] == GOLD[doc_id]),
        }
        | changes
        for i in range(len(next(iter(answers.values()))))
        for doc_id, found in answers.items()
    ]
    path.mkdir(exist_ok=True)
    file = path / f"samples_{task}_2026-11-23T16-33-03.112643.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def test_what_is_exported_agrees_with_itself(tmp_path):
    scores = scores_of([["18"], ["3"], [None], ["7"]])
    (path,) = export_lm_eval(scores, tmp_path)
    compared = compare_lm_eval(scores, path)
    assert (compared["outcome"] == "agree").all()
    assert compared["ours"].to_list() == compared["theirs"].to_list() == [1, 0, 0, 1]
    assert compared["their_answer"].to_list() == ["18", "3", "[invalid]", "7"]
    whole = agreement(compared).set_index("benchmark").loc["all"]
    assert whole[["n_paired", "agreement", "accuracy_ours", "accuracy_theirs"]].to_list() == [4, 1, 0.5, 0.5]


def test_samples_of_a_problem_stay_together_in_the_export(tmp_path):
    scores = scores_of([["18", "3", "18", None]])
    (path,) = export_lm_eval(scores, tmp_path)
    row = json.loads(path.read_text(encoding="utf-8"))
    assert row["exact_match"] == 0.5
    assert [len(responses) for responses in row["resps"]] == [4]
    assert row["filtered_resps"] == [["18", "3", "18", "[invalid]"]]
    assert compare_lm_eval(scores, path)["their_answer"].to_list() == [["18", "3", "18", "[invalid]"]]


def test_the_export_has_the_fields_of_a_harness_log(tmp_path):
    (ours,) = export_lm_eval(scores_of([["18"]]), tmp_path / "ours")
    theirs = harness_log(tmp_path / "theirs", "gsm8k", {0: ["18"]})
    ours, theirs = (json.loads(path.read_text(encoding="utf-8")) for path in (ours, theirs))
    assert list(ours) == list(theirs)
    for name in theirs:
        assert type(ours[name]) is type(theirs[name]), name
    assert len(ours["doc_hash"]) == len(theirs["doc_hash"])


def test_each_benchmark_gets_a_file_that_its_name_can_bear(tmp_path):
    items = [scores_of([["18"]], name).items for name in ("pocket/easy", "math500")]
    paths = export_lm_eval(Scores(tmp_path, pd.concat(items)), tmp_path)
    assert [path.name.rsplit("_", 1)[0] for path in paths] == ["samples_pocket_easy", "samples_math500"]
    items.append(scores_of([["18"]], "pocket_easy").items)
    with pytest.raises(ValueError, match="two would share a file"):
        export_lm_eval(Scores(tmp_path, pd.concat(items)), tmp_path)


def test_disagreements_come_first_with_both_answers(tmp_path):
    log = harness_log(tmp_path, "gsm8k", {3: ["7"], 2: ["30"], 1: ["4"], 0: ["[invalid]"]})
    compared = compare_lm_eval(scores_of([["18"], ["3"], [None], ["7"]]), log)
    assert compared["outcome"].to_list() == ["ours higher", "theirs higher", "agree", "agree"]
    first = compared.iloc[0]
    assert first[["problem_id", "doc_id", "gold", "ours", "theirs"]].to_list() == ["gsm8k/0", 0, "18", 1, 0]
    assert first[["our_answer", "their_answer"]].to_list() == ["18", "[invalid]"]
    assert first[["our_response", "their_response"]].to_list() == ["So it is 18.", "I say [invalid]"]
    row = agreement(compared).set_index("benchmark").loc["gsm8k"]
    assert row[["accuracy_ours", "accuracy_theirs", "agreement"]].to_list() == [0.5, 0.5, 0.5]
    assert row[["ours_higher", "theirs_higher", "only_ours", "only_theirs"]].to_list() == [1, 1, 0, 0]


def test_items_without_a_pair_are_shown_and_counted(tmp_path):
    log = harness_log(tmp_path, "gsm8k_cot", {1: ["2"], 3: ["7"]})
    compared = compare_lm_eval(scores_of([["18"], ["2"], ["30"]]), log)
    assert compared["outcome"].to_list() == ["only ours", "only ours", "only theirs", "agree"]
    assert compared["question"].notna().all()
    table = agreement(compared).set_index("benchmark")
    assert table.loc["gsm8k", ["n_paired", "only_ours", "only_theirs"]].to_list() == [1, 2, 0]
    assert table.loc["gsm8k_cot", ["n_paired", "only_ours", "only_theirs"]].to_list() == [0, 0, 1]
    assert table.loc["all", ["n_paired", "agreement", "accuracy_ours"]].to_list() == [1, 1, 1]


def test_of_several_filters_one_has_to_be_chosen(tmp_path):
    log = harness_log(tmp_path, "gsm8k", {0: ["[invalid]", "18"]})
    with pytest.raises(ValueError, match="filters strict-match, flexible-extract, not None: choose one"):
        compare_lm_eval(scores_of([["18"]]), log)
    strict, flexible = (
        compare_lm_eval(scores_of([["18"]]), log, filter=name) for name in ("strict-match", "flexible-extract")
    )
    assert [*strict["outcome"], *flexible["outcome"]] == ["ours higher", "agree"]


def test_a_folder_of_tasks_is_one_log_whatever_they_call_the_question(tmp_path):
    harness_log(tmp_path, "minerva_math_algebra", {0: ["18"]}, field="problem")
    harness_log(tmp_path, "minerva_math_geometry", {1: ["3"]}, field="Problem")
    compared = compare_lm_eval(scores_of([["18"], ["2"]], "math"), tmp_path)
    assert compared.set_index("task")["outcome"].to_dict() == {
        "minerva_math_geometry": "ours higher",
        "minerva_math_algebra": "agree",
    }


def test_white_space_does_not_matter_and_equal_questions_pair_in_order(tmp_path):
    log = harness_log(tmp_path, "gsm8k", {0: ["18"], 1: ["3"]}, doc={"id": "7", "problem": "How many\neggs are left? "})
    scores = scores_of([["18"], ["2"]])
    twice = Scores(scores.folder, scores.items.assign(question=QUESTIONS[0]))
    compared = compare_lm_eval(twice, log).set_index("problem_id")
    assert compared["outcome"].to_dict() == {"gsm8k/0": "agree", "gsm8k/1": "ours higher"}
    assert compared["doc_id"].to_dict() == {"gsm8k/0": 0, "gsm8k/1": 1}


@pytest.mark.parametrize(
    ("changes", "metric", "message"),
    [
        ({}, "math_verify", "no number 'math_verify' for 1 of 1 items: choose the metric among exact_match"),
        ({"exact_match": None}, "exact_match", "no number 'exact_match' for 1 of 1 items"),
        ({"doc": {"question": "Another?"}}, "exact_match", "none of our 1 questions among its 1"),
        ({"doc": "text"}, "exact_match", "line 1 of .* lacks the fields of doc"),
    ],
)
def test_a_log_that_cannot_be_compared_is_refused(tmp_path, changes, metric, message):
    log = harness_log(tmp_path, "gsm8k", {0: ["18"]}, **changes)
    with pytest.raises(ValueError, match=message):
        compare_lm_eval(scores_of([["18"]]), log, metric)


def test_a_damaged_doubled_or_missing_log_is_refused(tmp_path):
    log, scores = harness_log(tmp_path, "gsm8k", {0: ["18"]}), scores_of([["18"]])
    whole = log.read_text(encoding="utf-8")
    for text, message in (
        (whole[:-20], "line 1 of .* is no JSON object"),
        ("", "line 1 of"),
        ("[1]\n", "no JSON object"),
    ):
        log.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            compare_lm_eval(scores, log)
    log.write_text(whole * 2, encoding="utf-8")
    with pytest.raises(ValueError, match="holds a doc_id twice"):
        compare_lm_eval(scores, log)
    (tmp_path / "samples_gsm8k_2026-11-24T00-00-00.000000.jsonl").write_text(whole, encoding="utf-8")
    with pytest.raises(ValueError, match="has two logs of gsm8k"):
        compare_lm_eval(scores, tmp_path)
    with pytest.raises(ValueError, match="there is no samples_TASK"):
        compare_lm_eval(scores, tmp_path / "nowhere")
