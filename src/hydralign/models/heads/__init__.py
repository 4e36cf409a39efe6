"""What reads hidden states: token log-probabilities, values, scores."""
