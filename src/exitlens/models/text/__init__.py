"""What a tokenizer and a chat template make of a text."""
