"""Networks that recognise people."""

from reid_models.networks.baseline import Baseline
from reid_models.networks.mgn import MGN
from reid_models.networks.pcb import PCB

ReidNetwork = Baseline | MGN | PCB
"""All of them: `forward` gives a ReidOutput, `embed` what of it is ranked by, of length `num_features`."""
