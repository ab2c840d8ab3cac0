"""What a haematologist would describe of a cell, in numbers: its nucleus, its cytoplasm, their size, shape, colour, grain."""
