"""One recipe a kind of model: its data, its step, its evaluation, its optimiser groups."""
