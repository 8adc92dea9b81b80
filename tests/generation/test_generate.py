import importlib.util

import pytest
import torch

from mixdistill import LoRA, Sampling, finetune, load_problems, load_student, load_traces
from mixdistill.data.chat import prompt_ids, render_prompts
from mixdistill.finetuning.finetune import load_trained
from mixdistill.generation.generate import complete, default_engine, is_loop, length_sorted_batches


@pytest.fixture(scope="module")
def student():
    return load_student("pocket/xs")


@pytest.fixture(scope="module")
def prompts(student):
    """Six problems and six plain chains, which are shorter."""
    problems = render_prompts(student.tokenizer, load_problems("pocket/hard", n=6), student.context, None)[0]
    return problems + [prompt_ids(student.tokenizer, f"find thrice {machine} i7 :", "pocket") for machine in "ABCDEF"]


def tokens_and_ends(completions):
    return [(c.text, c.n_tokens, c.finish_reason) for c in completions]


@pytest.mark.parametrize("engine", ["static", "continuous"])
def test_greedy_output_does_not_depend_on_engine_or_batch(student, prompts, engine):
    assert len(set(map(len, prompts))) > 1
    one_by_one = [complete(student, [prompt], 60)[0] for prompt in prompts]
    assert tokens_and_ends(complete(student, prompts, 60, engine=engine)) == tokens_and_ends(one_by_one)


@pytest.mark.parametrize("engine", ["static", "continuous"])
def test_greedy_output_of_real_architectures_does_not_depend_on_engine_or_batch(qwen, llama, engine):
    for name in (qwen, llama):
        student = load_student(name)
        prompts = [prompt_ids(student.tokenizer, f"What is {'12 plus ' * n}30?", "gsm8k") for n in range(1, 6)]
        one_by_one = [complete(student, [prompt], 12)[0] for prompt in prompts]
        assert tokens_and_ends(complete(student, prompts, 12, engine=engine)) == tokens_and_ends(one_by_one)


def test_adapters_take_part_in_every_engine(prompts):
    traces = load_traces("pocket/short", n=8)
    run = finetune("pocket/xs", traces, lora=LoRA(r=4), lr=0.5, epochs=2, progress=False)
    tuned = load_trained(run)
    static, continuous = (complete(tuned, prompts, 20, engine=engine) for engine in ("static", "continuous"))
    assert tokens_and_ends(static) == tokens_and_ends(continuous)
    assert tokens_and_ends(static) != tokens_and_ends(complete(load_student("pocket/xs"), prompts, 20))


def test_greedy_output_is_plain_argmax(student, prompts):
    ids = torch.tensor([prompts[0]])
    while ids.shape[1] < len(prompts[0]) + 60:
        token = student.model(ids).logits[0, -1].argmax()
        ids = torch.cat([ids, token[None, None]], dim=1)
        if token in student.stop_tokens:
            break
    completion = complete(student, prompts[:1], 60)[0]
    assert completion.text == student.tokenizer.decode(ids[0, len(prompts[0]) :], skip_special_tokens=True)
    assert completion.n_tokens == ids.shape[1] - len(prompts[0])


def test_finish_reasons_tell_stopped_from_cut(student, prompts):
    cut = complete(student, prompts, 5)
    assert {(completion.finish_reason, completion.n_tokens) for completion in cut} == {("length", 5)}
    assert complete(student, prompts[:1], 60)[0].finish_reason == "stop"


def test_sampling_follows_its_seed_and_its_streams(student, prompts):
    def texts(seed, streams=None):
        return [c.text for c in complete(student, prompts, 40, Sampling(1.5, seed=seed), streams=streams)]

    assert texts(0) == texts(0) == texts(0, range(12))
    assert len({str(texts(0)), str(texts(1)), str(texts(0, range(1, 13)))}) == 3


def test_sampled_answers_do_not_depend_on_batch_or_order(student, prompts):
    sampling = Sampling(1.0, top_p=0.95, seed=2**63)
    together = complete(student, prompts, 60, sampling)
    apart = [complete(student, [p], 60, sampling, streams=[i])[0] for i, p in reversed(list(enumerate(prompts)))][::-1]
    assert tokens_and_ends(together) == tokens_and_ends(apart)


@pytest.mark.parametrize(
    ("cuda", "vllm", "n_params", "temperature", "engine"),
    [
        (False, True, 500_000_000, 0, "static"),
        (True, True, 500_000_000, 0, "vllm"),
        (True, False, 500_000_000, 0, "continuous"),
        (True, False, 500_000_000, 1, "static"),
        (True, True, 300_000, 0, "static"),
    ],
)
def test_the_engine_is_the_fastest_for_the_student_on_this_machine(
    cuda, vllm, n_params, temperature, engine, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: vllm or None)
    assert default_engine(n_params, Sampling(temperature)) == engine


def test_batches_hold_every_prompt_once_the_longest_first(prompts):
    batches = length_sorted_batches(prompts, 5)
    assert sorted(i for batch in batches for i in batch) == list(range(12))
    lengths = [len(prompts[i]) for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_a_tail_that_says_the_same_three_times_is_a_loop():
    start = list(range(100, 140))
    assert is_loop(start + [1, 2, 3] * 20)
    assert is_loop(start + list(range(50)) * 3)
    assert not is_loop(start + [1, 2, 3] * 19)  # 57 tokens: too few
    assert not is_loop(start + list(range(50)) * 2)  # twice is no loop
    assert not is_loop(start + [1, 2, 3] * 20 + [4])
    assert not is_loop(list(range(2000)))
    assert not is_loop([])


@pytest.mark.parametrize("choice", [{"temperature": -1}, {"top_p": 0}, {"n": 0, "temperature": 1}, {"n": 2}])
def test_bad_sampling_is_refused(choice):
    with pytest.raises(ValueError, match="Sampling"):
        Sampling(**choice)
