"""What a layer would have said: lenses, statistics of their distributions, and named results over whole texts."""
