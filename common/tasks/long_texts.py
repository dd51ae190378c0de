"""How long the texts of a data set are beside what is read of them and what a model was made for.

What a plan trains is not changed by it: it is said to people. At a site these figures are as
private as the texts; there they are told to the site's own people alone.
"""

from __future__ import annotations

import numpy as np

from lorica.common.backbone.loading import Backbone
from lorica.common.display.long_texts import LongTexts
from lorica.common.plan import RunPlan
from lorica.common.plan.course import PARTS
from lorica.common.tasks.inputs import Inputs, cut_share


def long_texts(plan: RunPlan, backbone: Backbone, inputs: Inputs) -> LongTexts:
    """What is to be said of the encoded records of a run."""
    training, promised = plan.training, backbone.promised_length
    within = training.max_length <= backbone.max_length
    lengths = np.asarray(inputs.lengths)
    beyond = float((lengths > promised).mean()) if promised and len(lengths) else 0.0
    return LongTexts(
        cut_share(inputs),
        min(training.max_length, backbone.max_length),
        "training.max_length" if within else "what the model takes",
        PARTS[training.keep],
        promised,
        beyond,
    )
