"""One folder a study: stage, analysis, chapter."""
