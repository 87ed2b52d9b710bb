"""From raw results to tables, plots and the page."""
