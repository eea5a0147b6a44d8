"""The command line: the only place that reads arguments, catches errors and sets what is the whole process's."""
