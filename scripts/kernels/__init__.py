"""The parts of check_kernels.py: what checks the kernels, what times them, and what tunes them."""
