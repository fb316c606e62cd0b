"""Training: a trainer for any kind of model, one recipe per kind, losses and sampling.

This room may use models, data, regions and evaluation, but not the command line. Begin with `trainer`, then `recipe`.
"""
