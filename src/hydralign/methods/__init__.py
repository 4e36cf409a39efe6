"""The training methods, one short loop each: supervised fine-tuning, reward models, PPO."""
