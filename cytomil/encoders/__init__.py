"""Architectures, the bundle on disk, the engines that run an encoder."""
