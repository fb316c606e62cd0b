"""The pure PyTorch twin of every operator: simple, exact, slow, differentiable. The definition of right."""
