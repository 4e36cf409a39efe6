"""Model folders: loading, checking, saving, adapters, models from scratch."""
