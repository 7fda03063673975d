"""The exact solver: branch and bound over the drafting time, with a proven bound. docs/control.md derives it."""
