"""Search of settings without target labels: many runs of one config, judged by a validator."""
