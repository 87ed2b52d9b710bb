"""Where token ids come from: a checkpoint's tokenizer files, and what reads them."""
