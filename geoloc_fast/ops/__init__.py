"""The operators as torch sees them: schema, fake, and the choice of a backend.

One file per operator registers `torch.ops.geoloc_fast.<name>` from Python, so that torch.compile, opcheck
and autocast know it, while the native modules know nothing of torch.

Knows the references and the native modules. Begin with `choose`, then any operator.
"""
