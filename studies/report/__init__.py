"""Records become one table of pandas, and that becomes statistics, tables, figures and a page."""
