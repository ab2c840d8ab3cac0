"""Benchmarks of speed, memory and accuracy. The tests never run them.

``python -m bench --help`` lists them and ``python -m bench NAME`` runs one. A benchmark is a module in this folder with a
function ``measure(options) -> Measured`` and, if it has options, ``add_options(parser)``. The list shows the first line of
its docstring. The other modules are shared: `timing` (interleaved repeats, ratios), `child` (peak memory of a process),
`machine` (the hardware, and its peak speed of matrix products), `tables` (Markdown and JSON).
"""
