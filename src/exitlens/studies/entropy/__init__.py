"""How sure each layer is, for correct and incorrect answers."""
