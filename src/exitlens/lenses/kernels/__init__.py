"""From hidden states to sums over the vocabulary: in PyTorch, compiled for a processor, and in Triton."""
