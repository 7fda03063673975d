"""What comes out, for people: CSV, figures and one self-contained HTML page."""
