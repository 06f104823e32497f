"""Units of work on many machines: actors of Ray, each with a model of its own; what is a unit stays ours."""
