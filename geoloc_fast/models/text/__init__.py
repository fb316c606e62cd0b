"""A description finds its place: text encoder, physical descriptors, and the model made of them."""
