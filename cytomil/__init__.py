"""cytomil: finds the diseased slide, and in it the few cells that say so, from slide labels alone."""

__version__ = "0.1.0"
