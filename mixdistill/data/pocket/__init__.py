"""The pocket world: a synthetic reasoning task and tiny Qwen2 students, small enough for a laptop CPU."""
