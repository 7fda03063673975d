"""The experiments of arXiv 2606.04581 on the planner's own model, and what lies just beyond them."""
