"""Settings: a frozen dataclass for every kind of YAML file, and the loader that reads it."""
