"""Triton kernels and their launchers, imported only where Triton runs.

A launcher takes what its operation's reference takes: the contract is there.
"""
