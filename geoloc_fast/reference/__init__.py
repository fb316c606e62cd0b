"""The pure PyTorch twin of every operator: simple, exact, slow, differentiable. The definition of right.

Knows torch alone. Begin with `windows`, which the azimuth operators share.
"""
