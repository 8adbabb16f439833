"""Settings: one frozen dataclass for every kind of YAML, and the loader that reads it."""
