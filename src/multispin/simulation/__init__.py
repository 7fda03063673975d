"""Runs the same passes, sessions and controller under a virtual clock, with simulated devices, links and luck."""
