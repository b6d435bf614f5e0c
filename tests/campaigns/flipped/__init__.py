"""One bit of one file, flipped: the commands, what each reads, and how what comes of it is judged."""
