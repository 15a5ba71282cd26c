"""One reader a file for each format in which the field stores its scans; ``readers`` picks the right one."""
