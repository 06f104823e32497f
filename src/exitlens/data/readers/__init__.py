"""One reader a format; each turns a source into records and the lines to report."""
