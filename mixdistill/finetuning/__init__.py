"""A student learns from traces: LoRA or all weights, resumable at any moment."""

import warnings

# Two warnings that nobody can act on: `python -m mixdistill.finetuning.finetune` imports the package, and so the module
# that is about to run; and peft 0.21 reads an attribute that transformers 5.23 deprecates.
warnings.filterwarnings("ignore", message=".*finetuning.finetune.* found in sys.modules", category=RuntimeWarning)
warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
