"""What is wrong with a machine that is to run a part of the project, and the command that mends it."""
