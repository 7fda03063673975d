"""The same round loop, controller and sessions under a virtual clock, and the paper's experiments."""
