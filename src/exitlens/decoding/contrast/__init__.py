"""Decoders that contrast layers, one file a decoder."""
