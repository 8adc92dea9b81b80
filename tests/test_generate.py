import pytest
import torch

from mixdistill import Sampling, load_problems, load_student
from mixdistill.chat import prompt_ids, render_prompts
from mixdistill.generate import complete, length_sorted_batches


@pytest.fixture(scope="module")
def student():
    return load_student("pocket/xs")


@pytest.fixture(scope="module")
def prompts(student):
    problems = load_problems("pocket/easy", n=6) + load_problems("pocket/hard", n=6)
    return render_prompts(student.tokenizer, problems, student.context, None)[0]


def test_left_padding_does_not_change_greedy_output(student, prompts):
    assert len(set(map(len, prompts))) > 1
    together = complete(student, prompts, 60)
    assert together == [complete(student, [prompt], 60)[0] for prompt in prompts]


def test_left_padding_does_not_change_greedy_output_of_real_architectures(qwen, llama):
    for name in (qwen, llama):
        student = load_student(name)
        prompts = [prompt_ids(student.tokenizer, f"What is {'12 plus ' * n}30?", "gsm8k") for n in range(1, 6)]
        assert complete(student, prompts, 12) == [complete(student, [prompt], 12)[0] for prompt in prompts]


def test_greedy_output_is_plain_argmax(student, prompts):
    ids = torch.tensor([prompts[0]])
    while ids.shape[1] < len(prompts[0]) + 60:
        token = student.model(ids).logits[0, -1].argmax()
        ids = torch.cat([ids, token[None, None]], dim=1)
        if token == student.stop_token:
            break
    completion = complete(student, prompts[:1], 60)[0]
    assert completion.text == student.tokenizer.decode(ids[0, len(prompts[0]) :], skip_special_tokens=True)
    assert completion.n_tokens == ids.shape[1] - len(prompts[0])


def test_finish_reasons_tell_stopped_from_cut(student, prompts):
    cut = complete(student, prompts, 5)
    assert {(completion.finish_reason, completion.n_tokens) for completion in cut} == {("length", 5)}
    assert complete(student, prompts[:1], 60)[0].finish_reason == "stop"


def test_sampling_follows_its_seed(student, prompts):
    def texts(seed):
        return [c.text for c in complete(student, prompts, 40, Sampling(temperature=1.5, seed=seed))]

    assert texts(0) == texts(0)
    assert texts(0) != texts(1)


def test_batches_hold_every_prompt_once_the_longest_first(prompts):
    batches = length_sorted_batches(prompts, 5)
    assert sorted(i for batch in batches for i in batch) == list(range(12))
    lengths = [len(prompts[i]) for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)
