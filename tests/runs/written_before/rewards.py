def plainness(completions):
    return [text.count('a') - 0.1 * len(text) for text in completions]
