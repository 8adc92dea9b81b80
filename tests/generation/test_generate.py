import copy
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import SHAPE
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from mixdistill import LoRA, Sampling, files, finetune, load_problems, load_student, load_traces
from mixdistill.data.chat import prompt_ids, render_prompts
from mixdistill.finetuning.checkpoints import load_trained
from mixdistill.generation import generate as generate_module
from mixdistill.generation.decode import PlainStudent, attend, is_plain, joint
from mixdistill.generation.generate import complete, completion, default_engine, is_loop, length_sorted_batches
from mixdistill.generation.sampling import chooser


@pytest.fixture(scope="module")
def student():
    return load_student("pocket/xs")


@pytest.fixture(scope="module")
def prompts(student):
    """Six problems and six plain chains, which are shorter."""
    problems = render_prompts(student.tokenizer, load_problems("pocket/hard", n=6), student.context, None)[0]
    return problems + [prompt_ids(student.tokenizer, f"find thrice {machine} i7 :", "pocket") for machine in "ABCDEF"]


def tokens_and_ends(completions):
    return [(c.response, c.n_tokens, c.finish_reason) for c in completions]


def by_generate(student, prompts, max_new_tokens):
    """As `complete`, by transformers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_module, "is_plain", lambda model: False)
        return complete(student, prompts, max_new_tokens)


def test_greedy_output_does_not_depend_on_the_batch(student, prompts):
    assert len(set(map(len, prompts))) > 1
    one_by_one = [complete(student, [prompt], 60)[0] for prompt in prompts]
    assert tokens_and_ends(complete(student, prompts, 60)) == tokens_and_ends(one_by_one)


def test_greedy_output_of_real_architectures_does_not_depend_on_the_batch(qwen, llama):
    for name in (qwen, llama):
        student = load_student(name)
        prompts = [prompt_ids(student.tokenizer, f"What is {'12 plus ' * n}30?", "gsm8k") for n in range(1, 6)]
        one_by_one = [complete(student, [prompt], 12)[0] for prompt in prompts]
        assert tokens_and_ends(complete(student, prompts, 12)) == tokens_and_ends(one_by_one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # folded into the weights, and beside them
def test_adapters_take_part(prompts, dtype):
    traces = load_traces("pocket/short", n=8)
    run = finetune("pocket/xs", traces, lora=LoRA(r=4), lr=0.5, epochs=2, progress=False)
    tuned = load_trained(run)
    tuned.model.to(dtype)
    ours = tokens_and_ends(complete(tuned, prompts, 20))
    assert ours == tokens_and_ends(by_generate(tuned, prompts, 20))
    assert ours != tokens_and_ends(complete(load_student("pocket/xs"), prompts, 20))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_adapters_add_to_what_the_loop_multiplies(dtype, tolerance):
    layers = {name: torch.nn.Linear(8, width, dtype=dtype) for name, width in (("a", 4), ("b", 6))}
    model = get_peft_model(torch.nn.ModuleDict(layers), LoraConfig(target_modules=["a", "b"]))
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted, x = list(model.base_model.model.values()), torch.randn(3, 5, 8).to(dtype)
    expected = torch.cat([layer(x) for layer in adapted], dim=-1)
    error = (joint(adapted, fold=dtype == torch.float32)(x) - expected).abs().max()
    assert error < tolerance * expected.abs().max()


def test_greedy_output_is_plain_argmax(student, prompts):
    ids = torch.tensor([prompts[0]])
    while ids.shape[1] < len(prompts[0]) + 60:
        token = student.model(ids).logits[0, -1].argmax()
        ids = torch.cat([ids, token[None, None]], dim=1)
        if token in student.stop_tokens:
            break
    completion = complete(student, prompts[:1], 60)[0]
    assert completion.response == student.tokenizer.decode(ids[0, len(prompts[0]) :], skip_special_tokens=True)
    assert completion.n_tokens == ids.shape[1] - len(prompts[0])


@pytest.mark.parametrize("size", ["xs", "s", "m", "l", "xl"])
def test_pocket_students_say_what_generate_says(size):
    student = load_student(f"pocket/{size}")
    problems = load_problems("pocket/hard", n=24) + load_problems("pocket/easy", n=24)
    prompts, _ = render_prompts(student.tokenizer, problems, student.context, None)
    assert is_plain(student.model)
    assert tokens_and_ends(complete(student, prompts, 80)) == tokens_and_ends(by_generate(student, prompts, 80))


def random_student(family, tokenizer, **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **SHAPE | options)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:  # random first weights leave these at 1 and 0
            torch.nn.init.normal_(parameter, 1 if "norm" in name else 0, 0.3)
    model.generation_config = GenerationConfig(eos_token_id=[2, 5], pad_token_id=0)
    return SimpleNamespace(model=model, tokenizer=tokenizer, device=torch.device("cpu"))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_every_architecture_of_the_loop_says_what_generate_says(family, bpe_tokenizer):
    student = random_student(family, bpe_tokenizer, sliding_window=None)
    prompts = [list(range(3, 3 + n)) for n in (2, 9, 5, 9, 17)]
    assert is_plain(student.model)
    assert tokens_and_ends(complete(student, prompts, 150)) == tokens_and_ends(by_generate(student, prompts, 150))


def test_other_architectures_are_decoded_by_generate_and_say_so(bpe_tokenizer):
    student = random_student("mistral", bpe_tokenizer, sliding_window=8)
    assert {c.engine for c in complete(student, [[5, 6]], 4)} == {"static, generate"}
    sampled, again = (complete(student, [[5, 6], [7]], 9, Sampling(1.0), seeds) for seeds in ([3, 4], [4, 3]))
    alone = complete(student, [[5, 6]], 9, Sampling(1.0), [3])
    assert tokens_and_ends(sampled[:1]) == tokens_and_ends(alone) != tokens_and_ends(again[:1])


@pytest.mark.parametrize("family", ["phi3", "rwkv"])
def test_rows_that_others_would_change_are_decoded_alone(family, bpe_tokenizer, capsys):
    scaled = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [64.0] * 4, "rope_theta": 100.0}
    scaled |= {"original_max_position_embeddings": 16}
    phi3 = {"rope_parameters": scaled, "pad_token_id": 0, "original_max_position_embeddings": 16}
    own = {"phi3": phi3, "rwkv": {"attention_hidden_size": 32, "context_length": 512}}
    student = random_student(family, bpe_tokenizer, **own[family])
    prompts = [[3 + (7 * i) % 50 for i in range(n)] for n in (25, 6, 14)]
    together = tokens_and_ends(complete(student, prompts, 8))
    assert together == [tokens_and_ends(complete(student, [prompt], 8))[0] for prompt in prompts]
    if family == "phi3":
        shared = [generate_module._share_a_batch(student.model, longest) for longest in (16, 17)]
        assert shared == [True, False]
    else:
        assert "rwkv: padding changes the answers, so rows are decoded one at a time" in capsys.readouterr().out


def test_a_token_beyond_the_embeddings_is_refused(student):
    n = student.model.get_input_embeddings().weight.shape[0]
    with pytest.raises(ValueError, match=rf"a text has the token .* \({n}\), and the weights are of {n} tokens only"):
        complete(student, [[1, 2], [3, n]], 4)


def test_a_response_keeps_the_tags_of_a_thought_where_these_are_special_tokens(bpe_tokenizer):
    words = copy.deepcopy(bpe_tokenizer)
    tokens = ["<think>", "</think>", "<|tool|>", "<|channel|>", "<|message|>"]
    words.add_special_tokens({"additional_special_tokens": tokens})
    how = {"engine": "static", "dtype": "float32", "batch": "1x1"}
    for said, response in (
        ("So<|tool|>.</think>It is 42.<|im_end|>", "So.</think>It is 42."),
        ("<|channel|>analysis<|message|>Is it 41", "<|channel|>analysisIs it 41"),  # cut: no answer
        ("<|channel|>final<|message|>It is 42.", "<|channel|>finalIt is 42."),
    ):
        ids = words(said, add_special_tokens=False)["input_ids"]
        assert completion(words, ids, [words.eos_token_id], how).response == response


def test_a_batch_that_does_not_fit_is_halved_and_says_the_same(student, prompts, monkeypatch, capsys):
    sampling, seeds = Sampling(1.0), range(12)
    whole = complete(student, prompts, 40, sampling, seeds)
    reserve = PlainStudent._reserve

    def small_memory(self, capacity):
        if len(self.positions) > 3:
            raise MemoryError("a cache of 3 rows is all there is")
        reserve(self, capacity)

    monkeypatch.setattr(PlainStudent, "_reserve", small_memory)
    parts = [complete(student, prompts, 40, sampling, seeds) for _ in range(2)]
    assert tokens_and_ends(parts[0]) == tokens_and_ends(parts[1]) == tokens_and_ends(whole)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2  # 12 to 6, 6 to 3; the second call knows
    assert said[1].endswith("now 3 at a time")


def test_any_stop_token_ends_a_completion(student, prompts):
    said = student.tokenizer(complete(student, prompts[:1], 60)[0].response, add_special_tokens=False)["input_ids"]
    stops = student.model.generation_config.eos_token_id
    student.model.generation_config.eos_token_id = [*stops, said[3]]
    ended = complete(student, prompts[:1], 60)[0]
    student.model.generation_config.eos_token_id = stops
    assert ended.finish_reason == "stop"
    assert ended.n_tokens == said.index(said[3]) + 1


def test_finish_reasons_tell_stopped_from_cut(student, prompts):
    cut = complete(student, prompts, 5)
    assert {(completion.finish_reason, completion.n_tokens) for completion in cut} == {("length", 5)}
    assert complete(student, prompts[:1], 60)[0].finish_reason == "stop"


def test_sampled_answers_follow_their_seeds_and_not_batch_or_order(student, prompts):
    sampling, seeds = Sampling(1.0, top_p=0.95), [2**63 - i for i in range(12)]
    together = complete(student, prompts, 60, sampling, seeds)
    apart = [complete(student, [p], 60, sampling, [s])[0] for p, s in reversed(list(zip(prompts, seeds, strict=True)))]
    assert tokens_and_ends(together) == tokens_and_ends(apart[::-1])
    others = [complete(student, prompts, 60, sampling, seeds[i:] + seeds[:i]) for i in (1, 2)]
    assert len({str(tokens_and_ends(each)) for each in (together, *others)}) == 3


def test_every_completion_has_a_seed_of_its_own():
    seeds = [Sampling(1.0, seed=seed).seed_of("math", i, j) for seed in (0, 2**63) for i in ("1", 1) for j in (0, 1)]
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds[0] == Sampling(0.5, top_p=0.9, n=2).seed_of("math", "1", 0)


@pytest.mark.parametrize(
    ("cuda", "vllm", "n_params", "engine"),
    [
        (False, True, 500_000_000, "static"),
        (True, True, 500_000_000, "vllm"),
        (True, False, 500_000_000, "static"),
        (True, True, 300_000, "static"),
    ],
)
def test_vllm_is_the_engine_where_it_is_installed_and_can_serve_the_student(cuda, vllm, n_params, engine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(generate_module, "find_spec", lambda name: vllm or None)
    assert default_engine(n_params) == engine


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


def drawn(logits, sampling, n=20_000):
    """Tokens drawn for n prompts from the same logits [vocabulary]."""
    choose = chooser(sampling, range(n), 1, torch.device("cpu"))
    return choose(logits.expand(n, -1), torch.arange(n), 0)


def test_tokens_are_drawn_from_the_smallest_set_that_reaches_top_p():
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.3])
    shares = torch.bincount(drawn(probabilities.log(), Sampling(1.0, top_p=0.65)), minlength=4) / 20_000
    assert shares[[0, 2]].tolist() == [0, 0]
    assert torch.allclose(shares[[1, 3]], torch.tensor([4 / 7, 3 / 7]), atol=0.02)
    shares = torch.bincount(drawn(probabilities.log(), Sampling(0.5)), minlength=4) / 20_000
    assert torch.allclose(shares, probabilities**2 / 0.3, atol=0.02)
    assert drawn(probabilities.log(), Sampling(1e-300), n=1).tolist() == [1]


def test_scores_keep_their_digits_in_bfloat16():
    """As those of Qwen2, whose keys have a large bias."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, n, 16).bfloat16() for heads, n in ((4, 1), (2, 9), (2, 9)))
    k = k + 100
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), enable_gqa=True)
    found = attend(q, k, v, None, 0.25).view(exact.shape)
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0)


def test_decoding_tells_how_far_it_is(student):
    told: list[str] = []
    before = files.heard.set((told.append,))
    try:
        complete(student, [[1, 2, 3]] * 8, 9)
    finally:
        files.heard.reset(before)
    assert re.fullmatch(r"1 tokens, (\d) of \1 answers not finished", told[0])


@pytest.mark.parametrize(
    "choice",
    [
        {"temperature": -1},
        {"temperature": True},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"seed": -1},
        {"seed": 2**63 + 1},
        {"seed": 1.0},
        {"n": 0, "temperature": 1},
        {"n": 2},
    ],
)
def test_bad_sampling_is_refused(choice):
    with pytest.raises(ValueError, match="Sampling"):
        Sampling(**choice)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"sampling": Sampling(1.0), "seeds": [1]}, "1 seeds for 12 prompts"),
        ({"sampling": Sampling(1.0), "seeds": [-1] * 12}, "a seed is -1"),
    ],
)
def test_bad_requests_are_refused(student, prompts, arguments, message):
    with pytest.raises(ValueError, match=message):
        complete(student, prompts, **{"max_new_tokens": 5} | arguments)
