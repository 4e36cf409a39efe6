"""Sequence classifiers: reward models and classifiers of texts, loaded or in training."""
