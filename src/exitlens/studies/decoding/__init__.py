"""Whether contrasting layers helps."""
