"""What is done to a region before a search: import imagery, prepare, synthesize, encode places, show.

Begin with `prepare`.
"""
