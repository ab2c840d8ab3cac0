"""Grids of runs, each a folder with a grid.yaml, run cell by cell by DVC: see README.md."""
