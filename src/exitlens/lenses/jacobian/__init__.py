"""What would each layer say if the rest of the model acted on it as it does on average? Fit, keep and apply it.

``lens`` applies the matrices, ``text`` pulls one text's targets back to every layer, ``fit`` sums over texts,
``published`` reads and writes the files that others publish. Rooms above ask :mod:`exitlens.lenses`.
"""
