"""What a layout costs on a slice that is not here: compile, read the program, estimate."""
