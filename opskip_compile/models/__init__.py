"""Models of transformers from outside: the oracle, which rows are visual, loading, prompts and answers."""
