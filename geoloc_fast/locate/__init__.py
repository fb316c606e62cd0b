"""A query in, an answer out: queries, locator, candidates, confidence, written answers.

Knows models through their contract and the index, nothing of a region's imagery. Begin with `locator`.
"""
