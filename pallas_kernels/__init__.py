"""The engine's device operations, a folder each.

`<operation>/__init__.py` is the public function, `reference.py` its plain XLA form, `triton.py` a kernel where there
is one, `shapes.py` the shapes the test suite and scripts/check_kernels.py run every implementation over, and
`tuning/*.json` the configurations measured per device. choose.py takes the first implementation that can serve a call.
"""
