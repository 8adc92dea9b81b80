"""The same ids and the same adapters give TRL's `SFTTrainer` the same losses and the same trained adapter."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback

from mixdistill import LoRA, finetune, load_student, load_traces, mix
from mixdistill.data.chat import render_traces
from mixdistill.finetuning.finetune import BETAS, schedule

trl = pytest.importorskip("trl")
N_STEPS, BATCH = 12, 8


class Record(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


@pytest.mark.parametrize("lora", [LoRA(r=4), None], ids=["lora", "full"])
def test_losses_and_weights_equal_those_of_trl(tmp_path, lora, monkeypatch):
    train = mix(load_traces("pocket/long", n=N_STEPS * BATCH), load_traces("pocket/short", n=N_STEPS * BATCH), 0.5)
    lr = 5e-3 if lora else 1e-3
    run = finetune("pocket/xs", train, lora=lora, lr=lr, epochs=1, batch_size=BATCH, progress=False)

    student = load_student("pocket/xs")
    torch.manual_seed(0)
    model = student.model
    if lora:
        adapters = LoraConfig(r=lora.r, lora_alpha=2 * lora.r, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapters)
    examples = render_traces(student.tokenizer, train, 256, "error")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        {"input_ids": e.input_ids, "labels": [-100] * e.n_prompt + e.input_ids[e.n_prompt :]}
        for e in (examples[i] for i in order)
    ]
    record = Record()
    settings = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=BATCH // 2,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        max_length=None,
        activation_checkpointing=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, betas=BETAS, weight_decay=0.0
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, N_STEPS))
    trl.SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=student.tokenizer,
        optimizers=(optimizer, rate),
        callbacks=[record],
    ).train()
    assert len(record.losses) == N_STEPS
    assert run.metrics()["loss"].to_list() == pytest.approx(record.losses, rel=2e-5)

    saved = load_file(next(run.folder.glob("*/*.safetensors")))
    state = {name.replace(".default", ""): p for name, p in model.state_dict().items()}
    for name, weight in saved.items():
        torch.testing.assert_close(weight, state[name], rtol=1e-3, atol=2e-5)
