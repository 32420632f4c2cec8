"""Pages, exports and data files written to the site."""
