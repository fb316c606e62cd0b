"""A query in, an answer out: queries, the locator, candidates, confidence, answers on paper.

Knows models through their contract and the index, nothing of a region's imagery. Begin with `locator`.
"""
