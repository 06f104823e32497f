"""Any amount of text, read layer by layer."""
