"""The reference implementation of every operator in plain PyTorch: simple, exact, slow and differentiable.

It defines the right answer; tests compare every other implementation with it. This room uses only torch.
Begin with `windows`, which the azimuth operators share.
"""
