"""What does a perturbation do to a small image classifier?

The rooms are described in ``docs/architecture.md``; each study is a folder under ``perturblab.studies``.
"""

__version__ = "0.1.0"
