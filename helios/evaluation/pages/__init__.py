"""How results are shown: names and units of figures, tables, plots, one HTML page."""
