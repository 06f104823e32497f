"""What lies on disk: a model folder, a GGUF file, an adapter, read, checked, and refused in one line."""
