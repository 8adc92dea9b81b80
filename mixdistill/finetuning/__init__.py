"""A student learns from traces: LoRA or all weights, resumable at any moment."""
