"""Language models that improve by playing against themselves."""

__version__ = "0.1.0"
