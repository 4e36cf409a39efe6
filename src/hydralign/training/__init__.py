"""What every training method shares: optimizer and schedule, checkpoints, interruption, metrics."""
