"""A student answers: many prompts, one of three engines."""
