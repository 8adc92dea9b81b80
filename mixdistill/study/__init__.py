"""Many arms at once: scales, sweeps, the whole reproduction by one command."""
