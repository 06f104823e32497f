"""Whether hidden states tell true from false."""
