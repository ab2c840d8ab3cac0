"""Measurements of speed, memory and accuracy; never run by the tests.

``python -m bench`` lists them and ``python -m bench NAME`` runs one. A bench is a module of this folder with a function
``measure(options) -> Measured`` and, where it takes options, ``add_options(parser)``; its docstring's first line is what the
list says of it. The other modules are shared: `timing` (interleaved repeats, ratios), `child` (peak memory of a process),
`machine` (what ran it, its matrix-product peak), `tables` (Markdown and JSON).
"""
