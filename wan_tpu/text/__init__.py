"""Prompts: cleaning, tokens, embeddings by UMT5 through torchax."""
