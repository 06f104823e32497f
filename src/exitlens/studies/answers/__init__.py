"""Answers of a decoder: generated once, judged once."""
