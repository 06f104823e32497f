"""Runs side by side: what `exitlens compare` reads from finished runs, and its report."""
