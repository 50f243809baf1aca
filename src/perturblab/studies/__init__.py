"""The studies, each a small folder over the shared engine. Adding one is a folder and a line here."""

STUDIES: dict[str, str] = {
    "masked-loss": "perturblab.studies.masked_loss",
}
"""name on the command line -> module; imported only when named"""
