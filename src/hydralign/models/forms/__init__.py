"""What is trained, and what the frozen reference is: full, LoRA, hydra."""
