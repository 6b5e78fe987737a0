"""Tables of labels (CSV): columns, files, rows, scan."""
