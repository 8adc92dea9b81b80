"""Ours beside TRL's `SFTTrainer` and a bare loop: same weights, same ids, same tokens, in turn within one process.

    python benchmarks/train.py                   the pocket students on this CPU, a few minutes
    python benchmarks/train.py --json            the same; the last line is JSON
    python benchmarks/train.py --device cuda --students qwen2.5-0.5b qwen2.5-1.5b qwen2.5-7b --longest 16384

- ours: `finetune`, whole, as users call it; timed from its first step to its last.
- TRL: `SFTTrainer` in the best of several settings, tried for each student beforehand: batches of 8, 16 or 32 grouped
  by length, or packing; on CUDA also Liger's layers where they are installed. Timed from its first step to its last.
- bare: forward, backward and AdamW over tensors made beforehand, on the peft model, in the same passes as ours: no
  packing, schedule, clipping, log or checkpoint.

Every round runs all three, in another order each; a ratio is the median over rounds of the ratio within a round. On a
CPU time is CPU time: all three compute in one thread, and what other processes do on the machine is not counted.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import median
from types import ModuleType
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from transformers.utils import is_flash_attn_2_available

from mixdistill import LoRA, finetune, load_student, load_traces, mix
from mixdistill.data.chat import Example, render_traces
from mixdistill.data.pocket.bases import POCKET
from mixdistill.finetuning import finetune as training
from mixdistill.finetuning.attention import VARLEN, attention_for
from mixdistill.finetuning.batches import IGNORED, pack, pad, token_groups
from mixdistill.finetuning.finetune import BETAS
from mixdistill.finetuning.memory import Placement, pass_tokens

BATCH = 32  # examples a step
LR = 1e-3
LORA = LoRA()

# Shapes of the Qwen2.5 models (their config.json on the Hub), in the order of `SIZES`; the weights are random, which
# costs the same. Only 7B's head is its own.
SHAPES = {
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2, 151_936),
    "qwen2.5-1.5b": (1536, 8960, 28, 12, 2, 151_936),
    "qwen2.5-7b": (3584, 18_944, 28, 28, 4, 152_064),
    "tiny": (64, 128, 2, 4, 2, 1000),  # for tests
}
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)

# Dense bfloat16 peak of one GPU in FLOP/s, from NVIDIA's data sheets; matched in this order within the device's name.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True)
class Measured:
    tokens_per_second: float
    peak_bytes: int  # above what was in use before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--students", nargs="+", default=list(POCKET), choices=[*POCKET, *SHAPES])
    parser.add_argument("--steps", type=int, default=12, help=f"of {BATCH} examples, timed in every round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--longest", type=int, default=4096, help="tokens of the longest example of a Qwen2.5 shape")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    if (arguments.device == "cuda") != torch.cuda.is_available():
        parser.error(
            "on a machine with a GPU use --device cuda, elsewhere --device cpu: finetune takes the GPU if there is one"
        )
    if find_spec("trl") is None:
        parser.error("TRL is not installed: pip install -e '.[test]'")
    quiet()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MIXDISTILL_RUNS"] = str(Path(folder, "runs"))
        for name in arguments.students:
            results[name] = compare(name, arguments.steps, arguments.rounds, arguments.longest, Path(folder))
            print(line(name, results[name]), flush=True)
    overall = {key: round(geometric_mean([row[key] for row in results.values()]), 3) for key in RATIOS}
    print("\n" + table(results))
    print(
        f"\nGeometric means: {overall['speedup_over_trl']:.2f} times TRL's tokens/s, {overall['time_over_bare']:.2f} "
        "of the bare loop's time."
    )
    if arguments.json:
        threads = torch.get_num_threads()
        print(json.dumps(overall | {"device": arguments.device, "threads": threads, "students": results}))


RATIOS = ("speedup_over_trl", "time_over_bare")


def compare(name: str, steps: int, rounds: int, longest: int, folder: Path) -> dict:
    """Measure the three on one student; see the module's docstring."""
    student = name if name in POCKET else random_student(name, folder)
    train = pocket_traces(steps) if name in POCKET else long_traces(steps, longest)
    loaded = load_student(student, device="cpu")  # where it leaves the GPU to the three
    examples = render_traces(loaded.tokenizer, train, loaded.context, "error")
    n_tokens = sum(len(e.input_ids) for e in examples)

    def by_trl(setting: dict) -> Measured:
        return fitting(lambda: run_trl(student, examples, folder, **setting))

    tried = [(by_trl(setting).tokens_per_second, setting) for setting in trl_settings(examples)]
    _, best = max(tried, key=lambda pair: -1 if math.isnan(pair[0]) else pair[0])
    contestants = {
        "ours": lambda seed: run_ours(student, train, seed),
        "trl": lambda seed: by_trl(best),
        "bare": lambda seed: fitting(lambda: run_bare(student, examples)),
    }
    run_ours(student, train, 10_000)  # to warm up; TRL has been
    found = {key: [] for key in contestants}
    for i in range(rounds):
        order = list(contestants)
        for key in order[i % 3 :] + order[: i % 3]:
            found[key].append(contestants[key](i))
    speed = {key: [m.tokens_per_second for m in values] for key, values in found.items()}
    row = {
        "n_tokens": n_tokens,
        "trl_settings": " ".join(f"{key}={value}" for key, value in best.items()),
        "speedup_over_trl": round(median(a / b for a, b in zip(speed["ours"], speed["trl"], strict=True)), 3),
        "time_over_bare": round(median(b / a for a, b in zip(speed["ours"], speed["bare"], strict=True)), 3),
    }
    for key, values in found.items():
        for measure, unit in (("tokens_per_second", 1), ("peak_bytes", 1e6)):
            middle = median(getattr(m, measure) for m in values) / unit
            name = "peak_mb" if measure == "peak_bytes" else measure
            row[f"{key}_{name}"] = middle if math.isnan(middle) else round(middle)
    if torch.cuda.is_available():
        peaks = [peak for part, peak in PEAK_FLOPS.items() if part in torch.cuda.get_device_name()]
        flops = flops_per_token(get_peft_model(loaded.model, lora_config()))
        row["ours_mfu"] = round(row["ours_tokens_per_second"] * flops / peaks[0], 3) if peaks else None
    return row


def fitting(run: Callable[[], Measured]) -> Measured:
    """What a run measures; nothing where memory runs out, as without checkpointing at 16k tokens."""
    try:
        return run()
    except torch.OutOfMemoryError:
        pass
    gc.collect()  # out of the except clause, so that the traceback no longer holds the batch
    torch.cuda.empty_cache()
    return Measured(math.nan, math.nan)


def flops_per_token(model: torch.nn.Module) -> int:
    """Training FLOPs of a token with adapters: 4N, as the frozen matrices get no gradient (Kaplan et al. 2020, arXiv
    2001.08361).

    N counts what a token is multiplied with: all but the adapters and an untied embedding's table.
    """
    causal = model.get_base_model()
    n = sum(p.numel() for name, p in causal.named_parameters() if ".lora_" not in name)
    embedding = causal.get_input_embeddings().weight
    return 4 * (n if causal.get_output_embeddings().weight is embedding else n - embedding.numel())


def run_ours(student: str, train: Dataset, seed: int) -> Measured:
    clock = Clock()
    with Peak() as peak, calling(clock.start, training, "batch_of"), calling(clock.end, training, "save_trained"):
        run = finetune(
            student,
            train,
            lora=LORA,
            lr=LR,
            epochs=1,
            batch_size=BATCH,
            seed=seed,
            progress=False,
        )
    return Measured(run.manifest["tokens"] / clock.seconds, peak.n_bytes)


def run_trl(student: str, examples: list[Example], folder: Path, **settings) -> Measured:
    import trl  # not what `real.py` needs of this file

    with Peak() as peak:
        loaded = load_student(student)
        rows = [{"input_ids": e.input_ids, "labels": [-100] * e.n_prompt + e.input_ids[e.n_prompt :]} for e in examples]
        cuda = torch.cuda.is_available()
        if cuda and is_flash_attn_2_available():  # TRL's packing needs it to keep examples apart
            loaded.model.set_attn_implementation("flash_attention_2")
        clock = Clock()
        trainer = trl.SFTTrainer(
            model=loaded.model,
            args=trl.SFTConfig(
                output_dir=str(folder / "trl"),
                learning_rate=LR,
                adam_beta2=BETAS[1],
                lr_scheduler_type="cosine",
                num_train_epochs=1,
                logging_steps=10,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                bf16=cuda,
                use_cpu=not cuda,
                **{"max_length": None, "activation_checkpointing": False} | settings,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            peft_config=lora_config(),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return Measured(sum(len(e.input_ids) for e in examples) / clock.seconds, peak.n_bytes)


def trl_settings(examples: list[Example]) -> list[dict]:
    """What a careful user would try. Packing cuts no example: a row is as long as the longest."""
    longest = max(len(e.input_ids) for e in examples)
    rows = max(1, round(sum(len(e.input_ids) for e in examples) / longest / math.ceil(len(examples) / BATCH)))
    sizes = (8, 16, 32) if longest < 1000 else (1, 2)
    settings = [
        {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": BATCH // size,
            "train_sampling_strategy": "group_by_length",
        }
        for size in sizes
    ]
    settings.append(
        {"packing": True, "max_length": longest, "per_device_train_batch_size": 1, "gradient_accumulation_steps": rows}
    )
    if torch.cuda.is_available():
        settings += [setting | {"activation_checkpointing": True} for setting in settings]
        if find_spec("liger_kernel"):
            settings += [setting | {"use_liger_kernel": True} for setting in settings]
    return settings


def run_bare(student: str, examples: list[Example]) -> Measured:
    with Peak() as peak:
        loaded = load_student(student)
        device, attention = loaded.device, attention_for(loaded.model, loaded.device)
        loaded.model.set_attn_implementation(attention)
        torch.manual_seed(0)
        model = get_peft_model(loaded.model, lora_config()).train()
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=LR, betas=BETAS, fused=True
        )
        budget = pass_tokens(Placement(), loaded.model.config, device, max(len(e.input_ids) for e in examples))
        steps = [
            bare_passes(examples[at : at + BATCH], budget, attention == VARLEN, device)
            for at in range(0, len(examples), BATCH)
        ]
        clock = Clock()
        clock.start()
        for passes in steps:
            for inputs in passes:
                with torch.autocast(device.type, torch.bfloat16, enabled=loaded.model.dtype == torch.bfloat16):
                    loss = model(**inputs).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        clock.end()
    return Measured(sum(len(e.input_ids) for e in examples) / clock.seconds, peak.n_bytes)


def bare_passes(examples: list[Example], budget: int, packed: bool, device: torch.device) -> list[dict]:
    """The inputs of a step's passes, as transformers takes them."""
    passes = []
    n_supervised = sum(len(e.input_ids) - e.n_prompt for e in examples)
    for group in token_groups([len(e.input_ids) for e in examples], budget, packed):
        chosen = [examples[i] for i in group]
        batch = (pack(chosen) if packed else pad(chosen, 0)).to(device)
        labels = torch.full_like(batch.inputs["input_ids"], IGNORED)
        labels.view(-1)[batch.predicts + 1] = batch.labels
        inputs = batch.inputs | {"labels": labels, "num_items_in_batch": n_supervised}
        passes.append(inputs)
    return passes


def lora_config() -> LoraConfig:
    return LoraConfig(r=LORA.r, lora_alpha=LORA.scaled_alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def pocket_traces(steps: int) -> Dataset:
    """Half of them long, as many as fill the steps."""
    n = steps * BATCH
    return mix(load_traces("pocket/long", n=n), load_traces("pocket/short", n=n), 0.5)


def long_traces(steps: int, longest: int) -> Dataset:
    """Traces as long as long chains of thought: log-normal, the median a third of the longest, cut there."""
    rng, traces = Random(0), load_traces("pocket/long", n=200)
    words = [len(response.split()) for response in traces["response"]]
    rows = []
    for i in range(steps * BATCH):
        wanted = min(0.95 * longest, longest / 3 * math.exp(rng.gauss(0, 0.8)))
        parts, total = [], 0
        while total < wanted or not parts:
            at = rng.randrange(len(traces))
            if parts and total + words[at] > 0.95 * longest:
                break
            parts.append(traces["response"][at])
            total += words[at]
        rows.append(traces[i % len(traces)] | {"response": " ".join(parts), "problem_id": str(i)})
    return Dataset.from_list(rows)


def random_student(name: str, folder: Path) -> str:
    """Folder of a model of a Qwen2.5 shape with random weights, and the pocket world's tokenizer."""
    torch.manual_seed(0)
    config = Qwen2Config(
        **dict(zip(SIZES, SHAPES[name], strict=True)),
        max_position_embeddings=32_768,
        tie_word_embeddings=name != "qwen2.5-7b",
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config).bfloat16()
    model.save_pretrained(folder / name)
    load_student("pocket/xs").tokenizer.save_pretrained(folder / name)
    return str(folder / name)


class Clock(TrainerCallback):
    """Seconds from the beginning of the first step to the end of the last, the GPU's work included."""

    def __init__(self) -> None:
        self.started, self.seconds = None, 0.0

    def start(self) -> None:
        if self.started is None:
            self.started = self.now()

    def end(self) -> None:
        self.seconds = self.now() - self.started

    def now(self) -> float:
        if not torch.cuda.is_available():
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, args, state, control, **_) -> None:
        self.start()

    def on_train_end(self, args, state, control, **_) -> None:
        self.end()


@contextlib.contextmanager
def calling(first: Callable[[], None], module: ModuleType, name: str) -> Iterator[None]:
    """Inside, `first` is called before a module's function, whenever that is called."""
    function = getattr(module, name)

    def both(*args, **kwargs):
        first()
        return function(*args, **kwargs)

    with patch.object(module, name, both):
        yield


class Peak(contextlib.AbstractContextManager):
    """Bytes in use at most inside, above those before: of the GPU, or on Linux of the process."""

    n_bytes = 0

    def __enter__(self) -> "Peak":
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif Path("/proc/self/clear_refs").exists():
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what others have freed would hide what this one takes
            Path("/proc/self/clear_refs").write_text("5")  # forgets the highest resident size
            self.before = status_bytes("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        if torch.cuda.is_available():
            self.n_bytes = torch.cuda.max_memory_allocated() - self.before
        elif Path("/proc/self/clear_refs").exists():
            self.n_bytes = status_bytes("VmHWM") - self.before


def status_bytes(field: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def table(results: dict[str, dict]) -> str:
    """Markdown, as the README shows it."""
    head = (
        "| student | ours, tokens/s | TRL, tokens/s | bare loop, tokens/s | ours over TRL | time over bare | "
        "extra memory, MB: ours, TRL, bare |"
    )
    rows = [
        f"| {name} | {row['ours_tokens_per_second']:,} | {row['trl_tokens_per_second']:,} | "
        f"{row['bare_tokens_per_second']:,} | {row['speedup_over_trl']:.2f} | {row['time_over_bare']:.2f} | "
        f"{row['ours_peak_mb']}, {row['trl_peak_mb']}, {row['bare_peak_mb']} |"
        for name, row in results.items()
    ]
    return "\n".join([head, "|---" + "|---:" * 6 + "|", *rows]).replace("nan", "out of memory")


def line(name: str, row: dict) -> str:
    trl, bare = row["speedup_over_trl"], row["time_over_bare"]
    return f"{name}: {trl:.2f} times TRL ({row['trl_settings']}), {bare:.2f} of the bare loop's time"


def geometric_mean(values: list[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return math.exp(sum(map(math.log, there)) / len(there)) if there else math.nan


def quiet() -> None:
    disable_progress_bars()
    warnings.simplefilter("ignore")
    for name in ("transformers", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
