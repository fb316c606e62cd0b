"""What is done to a region before a query: prepare, synthesize, encode its places, show.

Begin with `prepare`.
"""
