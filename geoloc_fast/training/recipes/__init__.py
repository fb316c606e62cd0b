"""One recipe per kind of model: its data, step, evaluation and optimiser groups.

Begin with `panogan`, the shortest; `geolocalizer` is the one with most settings.
"""
