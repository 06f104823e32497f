"""How confident each layer is, for correct and incorrect answers."""
