"""cytomil from Python: what `import cytomil` offers. Nothing below this package imports it."""
