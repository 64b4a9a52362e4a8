"""Training: settings, the one loop, checkpoints, several processes, tracking, and fine-tuning; no task of its own."""
