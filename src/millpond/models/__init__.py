"""What a checkpoint is and how it runs: resolve, spec, loading, tokenizer, pooling."""
