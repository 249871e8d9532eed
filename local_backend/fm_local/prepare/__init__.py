"""The check stage: from rows to memory-mapped shards of tokens. It needs a tokenizer, but neither torch nor a GPU."""
