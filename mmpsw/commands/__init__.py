"""What the files in tools/ run; each command is ``main(argv) -> int``."""
