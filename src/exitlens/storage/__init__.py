"""How a result is kept so that a kill cannot hurt it."""
