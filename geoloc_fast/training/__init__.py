"""Training: a trainer that knows no model, recipes that know one each, losses, sampling. Begin with `trainer`."""
