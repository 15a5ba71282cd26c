"""One reader a file for each layout in which the field stores its data; ``readers`` picks the right one."""
