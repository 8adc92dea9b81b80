"""A student learns from traces: LoRA or all weights, resumable at any moment."""

import warnings

# Nobody can act on it: peft 0.21 reads an attribute that transformers 5.23 deprecates.
warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
