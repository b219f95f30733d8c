"""Words to vectors: tokenizer, encoder, prompts."""
