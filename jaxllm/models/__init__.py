"""Language models: a registry of architectures and one file per block shape.

`registry.resolve(config_json)` gives an Architecture; its `build(dtype)` gives a model whose parameters are
abstract until the weights room fills them.
"""
