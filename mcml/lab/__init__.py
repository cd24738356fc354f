"""What the notebooks share: parameters, output with provenance, experiments, evaluation, figures, runner."""

from mcml.base import lazy_attributes

HOMES = {"Output": "output", "banner": "output"}
HOMES |= dict.fromkeys(
    ("check_parameters", "seed_everything", "parse_bpp_list", "parse_names", "parse_numbers"), "parameters"
)
HOMES |= dict.fromkeys(("mean_table", "misses", "bd_rate"), "evaluate")
__getattr__ = lazy_attributes(__name__, HOMES)
