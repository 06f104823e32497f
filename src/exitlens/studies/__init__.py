"""One folder a study: what is computed, how it is analysed, and the chapter that tells it.

``exitlens.studies.registry.STUDIES`` has them by name; :func:`exitlens.studies.registry.register` adds one.
"""
