"""Architectures, initial weights, the bundle on disk, and the engines that run an encoder."""
