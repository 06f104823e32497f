"""Which lens to trust: pass@k on known concepts, KL to the output, and controls that must not read anything."""
