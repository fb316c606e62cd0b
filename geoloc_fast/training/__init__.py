"""Training: a trainer that knows no model, recipes that know one each, losses, sampling.

Knows models, data and the operators; nothing of the command line. Begin with `trainer`, then `recipe`.
"""
