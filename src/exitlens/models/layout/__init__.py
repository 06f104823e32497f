"""Where the parts of a model are."""
