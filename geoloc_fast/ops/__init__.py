"""The operators registered with torch: schema, shape inference, and the choice of a backend.

One file per operator registers `torch.ops.geoloc_fast.<name>` from Python, so that it works with torch.compile,
opcheck and autocast. The native modules do not depend on torch.

This room may use the reference implementations and the native modules. Begin with `choose`, then read any operator.
"""
