"""Output for people: CSV, figures and one self-contained HTML page."""
