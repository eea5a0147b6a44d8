"""The command line. Only this package reads arguments, turns errors into exit codes and sets up the process."""
