"""The studies, each a small folder over the shared engine. Adding one is a folder and a line here."""

STUDIES: dict[str, str] = {
    "masked-loss": "perturblab.studies.masked_loss",
    "layerwise-mi": "perturblab.studies.layerwise_mi",
    "first-layer-mi": "perturblab.studies.first_layer_mi",
    "correction": "perturblab.studies.correction",
    "adaptive-noise": "perturblab.studies.adaptive_noise",
}
"""name on the command line -> module; imported only when named"""
