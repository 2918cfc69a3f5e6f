"""What a step, a training step and a trace cost in time and memory."""
